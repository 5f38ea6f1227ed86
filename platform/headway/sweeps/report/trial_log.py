"""Passes on to MLflow what a sweep's trials measure, in few calls and from a thread: each is a child run.

Ray Tune's loop only says which trials have changed. So no trial waits for a server, and a server that is away
for a while ends nothing: what it missed is read from the trials' journals once it answers again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from headway.runs.context import Context
from headway.runs.journal import Entry, JournalReader, Once
from headway.runs.system_metrics import SystemMetricsReader
from headway.sweeps.ledger import Ending, Trial, TrialState
from headway.tracking import Run
from headway.tracking.data_split import DataSplit
from headway.tracking.forwarding import Forwarder

_PAUSE_SECONDS = 5.0
"""Between two calls for the same trial; what it measures meanwhile is logged together."""

_REASONS = {
    TrialState.DONE: "",
    TrialState.STOPPED: "stopped by the scheduler",
    TrialState.FAILED: "failed",
}
"""Why a trial ended, if it does not say so itself. A stopped one did all that was asked: it is FINISHED."""


class TrialLog(Forwarder):
    """The runs of a sweep's trials; logs while the block runs, and at its end all that is left.

    Args:
        context: of the sweep.
        parent: the run of the sweep.
        data: the rows that every trial reads.
    """

    def __init__(self, context: Context, parent: Run, data: Sequence[DataSplit] = ()) -> None:
        super().__init__(self._pass_on, "headway-trials", _PAUSE_SECONDS, context.tracking.max_seconds_away)
        self._context = context
        self._parent = parent
        self._data = data
        self._runs: dict[int, _TrialRun] | None = None
        self._changed: dict[Trial, Ending | None] = {}
        self._lock = threading.Lock()

    def changed(self, trial: Trial, ending: Ending | None = None) -> None:
        """Have the thread log what is new of a trial; costs next to nothing.

        Args:
            trial: it has begun, has measured something, or has ended.
            ending: how it ended, if it has.
        """
        with self._lock:
            self._changed[trial] = ending

    def _pass_on(self) -> None:
        with self._lock:
            left, self._changed = self._changed, {}
        try:
            for trial, ending in list(left.items()):
                self._log(trial, ending)
                del left[trial]
        except Exception:
            # A run may have been made though its maker got no answer; so ask which ones there are.
            self._runs = None
            raise
        finally:
            with self._lock:
                self._changed = left | self._changed

    def _log(self, trial: Trial, ending: Ending | None) -> None:
        runs = self._known_runs()
        if trial.number not in runs:
            tracking, context = self._context.tracking, self._context
            run = tracking.start_run(
                context.experiment, trial.name, trial.sampled, self._parent, token=str(trial.number)
            )
            run.log_inputs(self._data)
            runs[trial.number] = _TrialRun(run, self._data, Once({}))
        runs[trial.number].log(trial, ending)

    def _known_runs(self) -> dict[int, _TrialRun]:
        """The runs by number of the trial; those that an earlier driver made, too."""
        if self._runs is None:
            children = self._context.tracking.children(self._parent)
            self._runs = {int(token): _TrialRun(run, self._data) for token, run in children.items()}
        return self._runs


class _TrialRun:
    """A trial's run in MLflow, and what of the trial's journal it already has.

    Args:
        run: of the trial.
        data: the rows that it reads.
        once: what is logged; None if only MLflow knows.
    """

    def __init__(self, run: Run, data: Sequence[DataSplit], once: Once | None = None) -> None:
        self._run = run
        self._data = data
        self._once = once
        self._readers: list[JournalReader | SystemMetricsReader] = []
        self._pending: deque[Entry] = deque()

    def log(self, trial: Trial, ending: Ending | None) -> None:
        """Log what is new, and close the run if the trial has ended."""
        if self._once is None:
            if not self._run.is_open():
                return  # an earlier driver has logged all of it
            self._run.log_params(trial.sampled)
            self._run.log_inputs(self._data)
            self._once = Once(self._run.logged_steps())
        if not self._readers:
            self._readers = [JournalReader(trial.journal), SystemMetricsReader(trial.folder)]
        for reader in self._readers:
            self._pending.extend(reader.unread())
        new = self._once.new(list(self._pending))
        if new:
            self._run.log_metrics([entry[:2] for entry in new], [entry.time for entry in new])
            self._once.mark(new)
        self._pending.clear()
        if ending is not None:
            failed = ending.state is TrialState.FAILED
            self._run.close("FAILED" if failed else "FINISHED", ending.reason or _REASONS[ending.state])
