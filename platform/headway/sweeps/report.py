"""Follows a sweep while it runs: a table on the screen, a child run in MLflow for each trial."""

from __future__ import annotations

from typing import Any

from headway.runs.context import Context
from headway.runs.journal import Entry, read_journal
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.trial_group import end_group
from headway.sweeps.winner import mode_of
from headway.tracking import Run

_RUN_STATUSES = {
    TrialState.DONE: "FINISHED",
    TrialState.STOPPED: "KILLED",
    TrialState.FAILED: "FAILED",
}
"""How MLflow calls the states that a trial may end in."""


class Leaderboard:
    """Follows the trials of one sweep.

    Attributes:
        metrics: what the sweep optimises; the first ranks its trials.
        metric: the first metric.
        mode: `max` or `min`, the direction of that metric.
    """

    def __init__(
        self, ledger: Ledger, context: Context, parent: Run, paths: list[str], metrics: list[str]
    ) -> None:
        self.metrics = metrics
        self.metric = metrics[0]
        self.mode = mode_of(self.metric)
        self._ledger = ledger
        self._context = context
        self._parent = parent
        self._paths = paths
        self._runs: dict[int, Run] = {}
        self._logged: dict[int, int] = {}
        self._latest: dict[int, Entry] = {}

    def reconcile(self) -> None:
        """Bring MLflow up to date with what the trials of an earlier driver left on disk."""
        children = self._context.tracking.children(self._parent)
        self._runs = {int(token): run for token, run in children.items()}
        for number, run in self._runs.items():
            self._logged[number] = run.last_step("validation_loss")
        for trial in self._ledger.trials():
            self.began(trial)
            self.measured(trial)
            if trial.ended is not None:
                self.ended(trial)

    def callback(self) -> Any:
        """What Ray Tune calls in the driver at each event of a trial."""
        from ray import tune

        board = self

        class Follow(tune.Callback):
            def __reduce__(self) -> Any:
                # Tune stores its callbacks with the experiment; this one belongs to the living driver.
                return tune.Callback, ()

            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                board.began(board._trial(trial))

            def on_trial_result(
                self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                board.measured(board._trial(trial))

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                ended = board._trial(trial)
                # A trial records by itself that it trained to its end; otherwise the scheduler stopped it.
                ended.end(TrialState.STOPPED)
                end_group(ended)
                board.ended(ended)

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                failed = board._trial(trial)
                failed.end(TrialState.FAILED, str(trial.get_error() or "").strip().splitlines()[-1:][0])
                board.ended(failed)

        return Follow()

    def _trial(self, trial: Any) -> Trial:
        return self._ledger.known_as(trial.trial_id, trial.config["point"]["number"])

    def began(self, trial: Trial) -> None:
        """Begin the child run of a trial that begins."""
        if trial.number not in self._runs:
            self._runs[trial.number] = self._context.tracking.start_run(
                self._context.experiment,
                trial.name,
                trial.sampled,
                self._parent,
                token=str(trial.number),
            )

    def measured(self, trial: Trial) -> None:
        """Log all that a trial has measured since the last call, once it was evaluated."""
        entries = read_journal(trial.journal)
        last = self._logged.get(trial.number, -1)
        new = [entry for entry in entries if entry.step > last]
        if new:
            self._logged[trial.number] = new[-1].step
            self._runs[trial.number].log_metrics([(e.step, e.metrics) for e in new], [e.time for e in new])
        evaluations = trial.evaluations()
        if evaluations:
            self._latest[trial.number] = evaluations[-1]
        self._context.display.live_table(*self._table())

    def ended(self, trial: Trial) -> None:
        """Close the run of a trial that has ended."""
        self.measured(trial)
        self._runs[trial.number].close(_RUN_STATUSES[trial.state])

    def show(self) -> None:
        """Leave the table on the screen."""
        self._context.display.table(*self._table())

    def _table(self) -> tuple[str, list[str], list[list[Any]]]:
        measures = list(dict.fromkeys([*self.metrics, "loss"]))
        columns = ["trial", *self._paths, "step", *measures, ""]
        sign = -1.0 if self.mode == "max" else 1.0
        trials = self._ledger.trials()
        trials.sort(key=lambda trial: self._rank(trial, sign))
        return "Sweep", columns, [self._row(trial, measures) for trial in trials]

    def _rank(self, trial: Trial, sign: float) -> float:
        metrics = self._latest[trial.number].metrics if trial.number in self._latest else {}
        return sign * metrics[self.metric] if self.metric in metrics else float("inf")

    def _row(self, trial: Trial, measures: list[str]) -> list[Any]:
        latest = self._latest.get(trial.number)
        metrics = latest.metrics if latest else {}
        return [
            trial.folder.name,
            *(trial.sampled.get(path, "") for path in self._paths),
            latest.step if latest else "",
            *(metrics.get(name, "") for name in measures),
            trial.state,
        ]
