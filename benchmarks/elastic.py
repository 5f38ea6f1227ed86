"""A group that shrinks and grows in the middle of pretraining has the losses of one that does not.

    python benchmarks/elastic.py            # about ten minutes

Four worker nodes train with `workers: [2, 4]`. Two of them are killed at once, and later one is added, so Ray
Train resizes the group 4 -> 2 -> 3. Losses and rows of every step are compared with those of a fixed group of
four. bert-mini, float32, dropout on; with four workers or three on 2 cores it is no measure of speed.
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

from local_cluster import Drive, LocalCluster, wait_until, write_pipeline

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


def farthest(drive: Drive, fixed: Drive) -> float:
    """The largest relative difference of any loss at any step."""
    found, expected = drive.history(), fixed.history()
    pairs = [
        pair
        for name in expected
        if name.endswith("loss")
        for pair in zip(found[name], expected[name], strict=True)
    ]
    assert all(one[0] == other[0] for one, other in pairs)
    return max(abs(one[1] / other[1] - 1.0) for one, other in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-elastic-") as name:
        folder = Path(name)
        pipeline = write_pipeline(folder, SETTINGS | {"steps": options.steps, "workers": [2, 4]})
        with closing(LocalCluster(workers=4)) as cluster:
            with closing(Drive(pipeline, folder / "resized", cluster.address)) as drive:
                resize(drive, cluster)
                drive.finish()
            cluster.add_node()  # the fourth again
            shutil.copytree(folder / "resized" / "stores", folder / "fixed" / "stores")
            with closing(Drive(pipeline, folder / "fixed", cluster.address)) as fixed:
                fixed.finish()
            sizes, apart = group_sizes(drive), farthest(drive, fixed)
            same_rows = sorted_rows(drive) == sorted_rows(fixed)
    print(
        f"group sizes {' -> '.join(map(str, sizes))}; {options.steps} steps, losses {apart:.1e} apart at most"
    )
    print(json.dumps({"group_sizes": sizes, "same_rows": same_rows, "most_apart": apart}))
    sys.exit(0 if same_rows and sizes == [4, 2, 3] and apart < 1e-3 else 1)


if __name__ == "__main__":
    main()
