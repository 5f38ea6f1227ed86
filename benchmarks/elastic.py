"""A group that shrinks and grows in the middle of pretraining has the losses of one that does not.

    python benchmarks/elastic.py            # about eight minutes

Four worker nodes train with `workers: [2, 4]`. Two of them are killed at once, and later one is added, so Ray
Train resizes the group 4 -> 2 -> 3. Losses and rows of every step are compared with those of a fixed group of
four. How far floating-point noise alone drives losses apart is seen from a fixed group of three: it adds up
the same numbers in another order, and training makes the difference grow step by step. bert-mini, float32,
dropout on; with four workers or three on 2 cores it is no measure of speed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from lib.local_cluster import Drive, LocalCluster, wait_until, write_pipeline

SETTINGS = {
    "batch_size": 32,
    "log_every": 1,
    "evaluate_every": 50,
    "checkpoint_every": 10,
    "precision": "fp32",
}
STEPS_OF_A_SIZE = 20


def group_sizes(drive: Drive) -> list[int]:
    """How many workers trained, one figure for each time that changed."""
    sizes = [size for _, size in sorted(drive.group_size_by_step().items())]
    return [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] != size]


def sorted_rows(drive: Drive) -> dict[int, list[int]]:
    """The rows of each step, whoever trained on them."""
    return {step: sorted(rows) for step, rows in drive.rows_by_step().items()}


def resize(drive: Drive, cluster: LocalCluster) -> None:
    """Kill two of the four nodes while all train; add one once the two that are left have trained."""

    def steps_of(size: int) -> int:
        return list(drive.group_size_by_step().values()).count(size)

    rng = random.Random(0)
    wait_until(lambda: drive.step() >= 2 * STEPS_OF_A_SIZE, drive)
    cluster.kill_node(rng)
    cluster.kill_node(rng)
    wait_until(lambda: steps_of(2) >= STEPS_OF_A_SIZE, drive, poll=0.5)
    cluster.add_node()
    wait_until(lambda: steps_of(3) >= STEPS_OF_A_SIZE, drive, poll=0.5)


def apart(drive: Drive, fixed: Drive) -> dict[int, float]:
    """The largest difference of a step's training losses, set against their sum."""
    found, expected = drive.history(), fixed.history()
    names = [name for name in expected if name.endswith("loss") and not name.startswith("validation")]
    steps = [step for step, _ in expected[names[0]]]
    assert all([step for step, _ in found[name]] == steps for name in names)
    differences = {}
    for place, step in enumerate(steps):
        pairs = [(found[name][place][1], expected[name][place][1]) for name in names]
        differences[step] = max(abs(one - other) for one, other in pairs) / sum(other for _, other in pairs)
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-elastic-") as name:
        folder = Path(name)
        pipeline = write_pipeline(folder, SETTINGS | {"steps": options.steps, "workers": [2, 4]})
        with closing(LocalCluster(workers=4)) as cluster:
            with closing(Drive(pipeline, folder / "resized", cluster.address)) as resized:
                resize(resized, cluster)
                resized.finish()
            three = fixed_group(pipeline, folder, cluster, 3)
            cluster.add_node()  # the fourth again
            four = fixed_group(pipeline, folder, cluster, 4)
            sizes, same_rows = group_sizes(resized), sorted_rows(resized) == sorted_rows(four)
            drift, noise = apart(resized, four), apart(three, four)
    print(f"group sizes {' -> '.join(map(str, sizes))}; {options.steps} steps\n")
    print(f"{'steps':>10}{'resized and four apart':>26}{'three and four apart':>24}")
    for first in range(0, options.steps, STEPS_OF_A_SIZE):
        inside = [step for step in drift if first < step <= first + STEPS_OF_A_SIZE]
        most = [max(side[step] for step in inside) for side in (drift, noise)]
        print(f"{inside[0]:>4} - {inside[-1]:<4}{most[0]:>25.1e}{most[1]:>24.1e}")
    most_apart, most_noise = max(drift.values()), max(noise.values())
    print(
        json.dumps(
            {"group_sizes": sizes, "same_rows": same_rows, "most_apart": most_apart, "noise": most_noise}
        )
    )
    sys.exit(0 if same_rows and sizes == [4, 2, 3] and most_apart < 10 * most_noise else 1)


def fixed_group(pipeline: Path, folder: Path, cluster: LocalCluster, workers: int) -> Drive:
    """The same training by a group that is not resized, dealt out as for the largest one."""
    runs = folder / f"fixed-{workers}"
    shutil.copytree(folder / "resized" / "stores", runs / "stores")
    with closing(Drive(pipeline, runs, cluster.address)) as drive:
        drive.finish()
    return drive


if __name__ == "__main__":
    main()
