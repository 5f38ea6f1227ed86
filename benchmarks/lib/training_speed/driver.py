"""Hand jobs to processes that measure, and wait for each no longer than its time.

A process that ends before its time, or is ended, costs the job it was at; another one goes on with the rest.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from lib.training_speed.results import Conditions, Failure, Job, Machine, Outcome
from lib.training_speed.worker import GO_ON_ELSEWHERE, work

Work = Callable[..., None]
OUT_OF_TIME = Failure("not run: the time for all of them was over")


def run_jobs(
    jobs: Sequence[Job],
    conditions: Conditions,
    *,
    log: Path,
    limit: float,
    deadline: float = float("inf"),
    target: Work = work,
) -> Generator[tuple[Job, Outcome, Machine | None], None, None]:
    """The outcome of each job, in their order, as they come.

    Args:
        jobs: what to measure.
        conditions: for all of them; they say whether jobs share a process.
        log: what the processes print.
        limit: seconds for one job, starting its process included.
        deadline: by `time.monotonic`, when everything ends.
        target: what a process runs; `worker.work`.
    """
    remaining = list(jobs)
    while remaining and time.monotonic() < deadline:
        together = remaining if conditions.shares_process else remaining[:1]
        with _Process(together, conditions, log, target) as process:
            for job in list(together):
                outcome = process.outcome(limit, deadline)
                if outcome is None:
                    break
                yield job, outcome, process.machine
                del remaining[0]
                if process.is_over:
                    break
    for job in remaining:
        yield job, OUT_OF_TIME, None


class _Process:
    """A process at work on jobs.

    Attributes:
        machine: what it said it runs on; None before.
        is_over: whether nothing more will come.
    """

    def __init__(self, jobs: Sequence[Job], conditions: Conditions, log: Path, target: Work) -> None:
        self.machine: Machine | None = None
        self.is_over = False
        self._log = log
        # Not forked: a process of its own in memory too, and one in which CUDA can start.
        context = multiprocessing.get_context("spawn")
        self._answers, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=target, args=(list(jobs), conditions, sender, log))
        self._sender: Any = sender

    def __enter__(self) -> _Process:
        self._process.start()
        self._sender.close()  # or the end of the process would not show
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def outcome(self, limit: float, deadline: float) -> Outcome | None:
        """Of the next job; a failure if it does not come in time, after which nothing will.

        None if the process ended because another one should go on.
        """
        last_moment = min(deadline, time.monotonic() + limit)
        while True:
            if not self._answers.poll(max(0.0, last_moment - time.monotonic())):
                self.is_over = True
                is_late = time.monotonic() >= deadline
                return OUT_OF_TIME if is_late else Failure(f"took longer than {limit:g} s")
            try:
                answer = self._answers.recv()
            except (EOFError, ConnectionError):
                return self._died()
            if not isinstance(answer, Machine):
                return answer
            self.machine = answer

    def _died(self) -> Failure | None:
        self.is_over = True
        self._process.join()
        if self._process.exitcode == GO_ON_ELSEWHERE:
            return None
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return Failure(f"its process ended with exit code {self._process.exitcode}: {last}"[:200])
