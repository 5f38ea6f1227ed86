"""What is done once a trial has ended: it is recorded, its group is freed, and what nobody needs is deleted.

A thousand models and their states would fill a disk, so a trial keeps its model only if it wins now, or may
win once others have ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from headway.redaction import redacted
from headway.sweeps.ledger import Ending, Ledger, Trial, TrialState
from headway.sweeps.trial_group import free_group
from headway.sweeps.winner import Measured, SettingsOf, contenders, measured_by

Tell = Callable[[Trial, Ending], None]
"""Takes a trial, and how it ended."""


class EndedTrials:
    """Works in a thread, in the order in which trials end; the end of the block waits for it.

    Args:
        ledger: of all trials.
        settings_of: takes a trial's values and returns its settings, which say what model it kept.
        metrics: by which trials win.
    """

    def __init__(self, ledger: Ledger, settings_of: SettingsOf, metrics: list[str]) -> None:
        self._settings_of = settings_of
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headway-ended")
        self._tasks: list[Future[None]] = []
        done = [trial for trial in ledger.trials() if trial.state is TrialState.DONE]
        self._contenders = [self._measured(trial) for trial in done]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error_type is None:
            for task in self._tasks:
                task.result()

    def add(self, trial: Trial, ending: Ending, tell: Tell, details: str = "") -> None:
        """Note a trial that has ended; returns at once.

        Args:
            trial: which.
            ending: how it ended, unless it has recorded that itself.
            tell: called by the thread with how it ended.
            details: what went wrong, with tracebacks; left in the trial's folder.
        """
        self._tasks.append(self._thread.submit(self._settle, trial, ending, tell, details))

    def delete(self, states: Iterable[Path]) -> None:
        """Delete states of a population that no trial can continue from any more; returns at once."""
        for state in states:
            self._tasks.append(self._thread.submit(state.unlink, missing_ok=True))

    def _settle(self, trial: Trial, ending: Ending, tell: Tell, details: str) -> None:
        if details:
            (trial.folder / "failure.log").write_text(redacted(details), encoding="utf-8")
        trial.end(*ending)
        free_group(trial)
        recorded = trial.ended or ending
        tell(trial, recorded)
        for name in ("best", "state"):
            shutil.rmtree(trial.folder / name, ignore_errors=True)
        if recorded.state is TrialState.DONE:
            self._delete_beaten(self._measured(trial))

    def _delete_beaten(self, new: Measured) -> None:
        """Delete the models that cannot win now that there is a new one, which may be one of them."""
        candidates = sorted([*self._contenders, new], key=lambda measured: measured.trial.number)
        self._contenders = contenders(candidates, self._metrics)
        for measured in candidates:
            if measured not in self._contenders:
                shutil.rmtree(measured.trial.model, ignore_errors=True)

    def _measured(self, trial: Trial) -> Measured:
        return Measured(trial, measured_by(trial, self._settings_of(trial.sampled)))
