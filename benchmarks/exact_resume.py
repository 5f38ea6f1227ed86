"""Kill anything, change nothing: a pretraining run whose processes are killed ends with the same bits.

    python benchmarks/exact_resume.py
    python benchmarks/exact_resume.py --kills 4 --steps 60      # in about three minutes

A cluster of a head and three worker nodes on this machine trains with two workers. At seeded random moments a
worker, a whole node and the driver are SIGKILLed in turn, and a node gets notice that it will be taken away;
every third time while a state is being written. Weights, MLflow's metrics and the ids of the rows seen are
then compared with an untouched run's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lib.local_cluster import Drive, LocalCluster, wait_until, write_pipeline
from lib.run_record import compare

from headway.runs.journal import Entry

TARGETS = ["worker", "node", "driver", "notice"]
CHECKPOINT_EVERY = 10
SETTINGS = {
    "batch_size": 16,
    "log_every": 1,
    "evaluate_every": 25,
    "checkpoint_every": CHECKPOINT_EVERY,
    "workers": 2,
}


@dataclass(frozen=True)
class Kill:
    """One kill: of what, after which step, whether a state was being written, and what it cost."""

    target: str
    step: int
    while_saving: bool
    lost_steps: int
    recovery_seconds: float


def kill_once(
    drive: Drive, cluster: LocalCluster, target: str, while_saving: bool, rng: random.Random
) -> Kill:
    """Let the run go on for a random while, kill, and wait for the next step that is trained."""
    goal = drive.step() + rng.randint(2, CHECKPOINT_EVERY + 2)
    wait_until(lambda: drive.step() >= goal, drive)
    if while_saving:
        wait_until(drive.is_saving, drive, poll=0.0005)
    else:
        time.sleep(rng.random() * 0.3)
    step, starts, killed_at = drive.step(), drive.starts(), time.time()
    kill = {
        "worker": cluster.kill_worker,
        "node": cluster.replace_node,
        "driver": lambda rng: drive.kill(),
        "notice": cluster.drain_node,
    }
    kill[target](rng)
    first: list[Entry] = []

    def has_recovered() -> bool:
        nonlocal step
        if drive.starts() == starts:
            step = drive.step()  # what still runs may finish a step or two before it is stopped
            return False
        first[:] = [entry for entry in drive.trained() if entry.time / 1000 > killed_at][:1]
        return bool(first)

    wait_until(has_recovered, drive)
    lost = step - (first[0].step - 1)
    return Kill(target, step, while_saving, lost, first[0].time / 1000 - killed_at)


def kill_often(drive: Drive, cluster: LocalCluster, kills: int, rng: random.Random) -> list[Kill]:
    """So many kills of the targets in turn, each also in the middle of a save, every third time."""
    done: list[Kill] = []
    for number, target in zip(range(kills), itertools.cycle(TARGETS), strict=False):
        while_saving = number // len(TARGETS) % 3 == 1
        done.append(kill_once(drive, cluster, target, while_saving, rng))
        print(_line(number + 1, done[-1]), flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-exact-") as name:
        folder = Path(name)
        pipeline = write_pipeline(folder, SETTINGS | {"steps": options.steps})
        with closing(LocalCluster(workers=3)) as cluster:
            with closing(Drive(pipeline, folder / "untouched", cluster.address)) as untouched:
                untouched.finish()
            shutil.copytree(folder / "untouched" / "stores", folder / "killed" / "stores")
            with closing(Drive(pipeline, folder / "killed", cluster.address)) as drive:
                kills = kill_often(drive, cluster, options.kills, random.Random(options.seed))
                drive.finish()
            result = compare(drive, untouched, options.steps)
    saving = sum(kill.while_saving for kill in kills)
    print(f"\nstates every {CHECKPOINT_EVERY} steps; {saving} of {len(kills)} kills while one was written")
    print(
        json.dumps(
            {
                "kills": len(kills),
                **result,
                "max_lost_steps": max(kill.lost_steps for kill in kills),
                "mean_recovery_seconds": round(sum(kill.recovery_seconds for kill in kills) / len(kills), 2),
                "max_recovery_seconds": round(max(kill.recovery_seconds for kill in kills), 2),
            }
        )
    )
    sys.exit(0 if all(result.values()) else 1)


def _line(number: int, kill: Kill) -> str:
    moment = "while saving" if kill.while_saving else ""
    return (
        f"{number:>3}  {kill.target:<7} after step {kill.step:>4}  {moment:<13} "
        f"{kill.lost_steps:>3} steps done again, next step after {kill.recovery_seconds:5.1f} s"
    )


if __name__ == "__main__":
    main()
