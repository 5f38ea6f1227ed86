"""A group that grows and shrinks in the middle of pretraining has the losses of one that does not.

    python benchmarks/elastic.py            # about five minutes

A cluster starts with one worker node, gets a second one, and loses one of the two; Ray Train resizes the
group of `workers: [1, 2]`. Losses and rows of every step are compared with those of a fixed group.
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


def group_sizes(drive: Drive) -> list[int]:
    """How many workers trained, one figure for each time that changed."""
    second = drive.folder / "rows" / "1.jsonl"
    with_two = {json.loads(line)["step"] for line in second.read_text().splitlines()}
    sizes = [2 if step in with_two else 1 for step in sorted(drive.rows_by_step())]
    return [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] != size]


def sorted_rows(drive: Drive) -> dict[int, list[int]]:
    """The rows of each step, whoever trained on them."""
    return {step: sorted(rows) for step, rows in drive.rows_by_step().items()}


def resize(drive: Drive, cluster: LocalCluster) -> None:
    """Add a node while one worker trains; kill one of the two nodes while two do."""
    wait_until(lambda: drive.step() >= 20, drive)
    cluster.add_node()
    second = drive.folder / "rows" / "1.jsonl"
    wait_until(lambda: second.exists() and len(second.read_text().splitlines()) > 20, drive)
    cluster.kill_node(random.Random(0))


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
        pipeline = write_pipeline(folder, SETTINGS | {"steps": options.steps, "workers": [1, 2]})
        with closing(LocalCluster(workers=1)) as cluster:
            with closing(Drive(pipeline, folder / "resized", cluster.address)) as drive:
                resize(drive, cluster)
                drive.finish()
            cluster.add_node()
            shutil.copytree(folder / "resized" / "stores", folder / "fixed" / "stores")
            with closing(Drive(pipeline, folder / "fixed", cluster.address)) as fixed:
                fixed.finish()
            sizes, apart = group_sizes(drive), farthest(drive, fixed)
            same_rows = sorted_rows(drive) == sorted_rows(fixed)
    print(
        f"group sizes {' -> '.join(map(str, sizes))}; {options.steps} steps, losses {apart:.1e} apart at most"
    )
    print(json.dumps({"group_sizes": sizes, "same_rows": same_rows, "most_apart": apart}))
    sys.exit(0 if same_rows and len(sizes) >= 3 and apart < 1e-3 else 1)


if __name__ == "__main__":
    main()
