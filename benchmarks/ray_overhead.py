"""What Ray Train costs a training step: tokens/s of the same job on one Ray worker and without Ray.

    python benchmarks/ray_overhead.py                 # about 8 minutes on 2 cores
    python benchmarks/ray_overhead.py --turns 4       # in two

BERT-mini on BBC paragraphs, 64 sequences a step, all cores for either. Both jobs are started, and then take
turns of some seconds: while one trains, every process of the other is stopped, Ray's own among them. So each
turn with Ray has a turn without it right before and after, in the same state of the machine. Both see the
same batches, so that steps/s and tokens/s have the same ratio. A turn's speed is that of its steps after the
first.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from lib.paragraphs import bbc_paragraphs

from headway.runs.journal import Entry, read_journal

WORKERS = {"plain": 0, "ray": 1}
WARM_UP_STEPS = 20
_MORE_STEPS_THAN_ANY = 100_000


def train(name: str, runs: Path) -> None:
    """One of the two jobs; ends when it is killed."""
    import headway

    headway.pretrain(
        bbc_paragraphs(),
        model={"preset": "bert-mini"},
        objective=["mlm"],
        steps=_MORE_STEPS_THAN_ANY,
        batch_size=64,
        workers=WORKERS[name],
        log_every=1,
        evaluate_every=_MORE_STEPS_THAN_ANY,
        checkpoint_every=_MORE_STEPS_THAN_ANY,
        validation_rows=64,
        vocab_size=8192,
        runs=runs,
        quiet=True,
    )


class Job:
    """A job in processes of its own.

    Args:
        name: `plain` or `ray`.
        folder: for its runs.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.runs, self.speeds = folder / name, list[float]()
        environment = os.environ | {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": os.cpu_count()})}
        command = [sys.executable, __file__, "--train", name, "--runs", str(self.runs)]
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def warm_up(self) -> None:
        """Train some steps that do not count, and stop.

        Raises:
            SystemExit: the job ended.
        """
        while self.steps() < WARM_UP_STEPS:
            if self._process.poll() is not None:
                self._log.seek(0)
                raise SystemExit(f"a job ended:\n{self._log.read()[-3000:]}")
            time.sleep(0.5)
        self.send(signal.SIGSTOP)

    def trained(self) -> list[Entry]:
        """A report for each step so far."""
        entries = [entry for path in self.runs.rglob("journal.jsonl") for entry in read_journal(path)]
        return [entry for entry in entries if "mlm_loss" in entry.metrics]

    def steps(self) -> int:
        """Steps done."""
        return len(self.trained())

    def send(self, number: signal.Signals) -> None:
        """A signal to every process of the job."""
        driver = psutil.Process(self._process.pid)
        for process in [driver, *driver.children(recursive=True)]:
            # Some end by themselves as soon as another one is killed.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def take_turn(self, seconds: float) -> None:
        """Train for so long, and note the steps a second."""
        before = self.steps()
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        # The first step was begun in the turn before.
        first, *others = self.trained()[before:]
        self.speeds.append(1000 * len(others) / (others[-1].time - first.time))

    def end(self) -> None:
        """Kill every process."""
        self.send(signal.SIGKILL)
        self._process.wait()


def ratios(plain: list[float], ray: list[float]) -> list[float]:
    """Each turn with Ray by the mean of the turns before and after; there is one more without."""
    pairs = itertools.pairwise(plain)
    return [2 * speed / (before + after) for speed, (before, after) in zip(ray, pairs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=24, help="of each job")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a turn")
    parser.add_argument("--train", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.runs)
        return
    with tempfile.TemporaryDirectory(prefix="headway-benchmark-") as folder:
        jobs: list[Job] = []
        try:
            for name in WORKERS:
                jobs.append(Job(name, Path(folder)))
                jobs[-1].warm_up()
            plain, ray = jobs
            plain.take_turn(options.seconds)
            for _ in range(options.turns):
                ray.take_turn(options.seconds)
                plain.take_turn(options.seconds)
        finally:
            for job in jobs:
                job.end()
    report(plain.speeds, ray.speeds)


def report(plain: list[float], ray: list[float]) -> None:
    """Print the turns, and the ratio with its standard error."""
    print(f"{'':<8}{'steps/s':>10}  turns")
    for name, speeds in (("plain", plain), ("ray", ray)):
        turns = " ".join(f"{speed:.2f}" for speed in speeds)
        print(f"{name:<8}{statistics.fmean(speeds):>10.3f}  {turns}")
    found = ratios(plain, ray)
    error = statistics.stdev(found) / len(found) ** 0.5
    summary = {"ratio_ray_to_plain": statistics.fmean(found), "median": statistics.median(found)}
    summary |= {"standard_error": error}
    print(json.dumps({"benchmark": "ray_overhead"} | {k: round(v, 4) for k, v in summary.items()}))


if __name__ == "__main__":
    main()
