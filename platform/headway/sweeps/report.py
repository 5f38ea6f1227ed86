"""What a sweep shows and tracks while it runs: a table on the screen, a child run a trial in MLflow."""

from __future__ import annotations

from typing import Any

from headway.runs.context import Context
from headway.runs.journal import Entry, read_journal
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.trial_group import end_group
from headway.sweeps.winner import mode_of
from headway.tracking import Run

_STATUSES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Leaderboard:
    """Follows the trials of one sweep.

    Attributes:
        metrics: what the sweep looks at; the first ranks its trials.
        metric: the first of them.
        mode: `max` or `min`: which way it ranks.
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
        self._runs: dict[str, Run] = {}
        self._logged: dict[str, int] = {}
        self._latest: dict[str, Entry] = {}

    def reconcile(self) -> None:
        """Bring MLflow up to what an earlier driver's trials left on disk."""
        self._runs = self._context.tracking.children(self._parent)
        for name, run in self._runs.items():
            self._logged[name] = run.last_step("validation_loss")
        for trial in self._ledger.trials():
            self.began(trial)
            self.measured(trial)
            if trial.ended is not None:
                self.ended(trial)

    def callback(self) -> Any:
        """What Ray Tune calls in the driver, at each event of a trial."""
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
                found = board._trial(trial)
                # The trial itself notes that it trained to its end; all else was the scheduler's doing.
                found.end("stopped")
                end_group(found)
                board.ended(found)

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                found = board._trial(trial)
                found.end("failed", str(trial.get_error() or "").strip().splitlines()[-1:][0])
                board.ended(found)

        return Follow()

    def _trial(self, trial: Any) -> Trial:
        return self._ledger.known_as(trial.trial_id, trial.config["point"]["number"])

    def began(self, trial: Trial) -> None:
        """A trial begins: so does its child run."""
        if trial.name not in self._runs:
            tracking, experiment = self._context.tracking, self._context.experiment
            self._runs[trial.name] = tracking.start_run(experiment, trial.name, trial.sampled, self._parent)

    def measured(self, trial: Trial) -> None:
        """A trial was evaluated: all that it measured since then goes to its run."""
        entries = read_journal(trial.journal)
        last = self._logged.get(trial.name, -1)
        new = [entry for entry in entries if entry.step > last]
        if new:
            self._logged[trial.name] = new[-1].step
            self._runs[trial.name].log_metrics([(e.step, e.metrics) for e in new], [e.time for e in new])
        evaluations = trial.evaluations()
        if evaluations:
            self._latest[trial.name] = evaluations[-1]
        self._context.display.live_table(*self._table())

    def ended(self, trial: Trial) -> None:
        """A trial is over: trained to the end, stopped by the scheduler, or failed."""
        self.measured(trial)
        ended = trial.ended
        assert ended is not None
        self._runs[trial.name].close(_STATUSES[ended["state"]])

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
        metrics = self._latest[trial.name].metrics if trial.name in self._latest else {}
        return sign * metrics[self.metric] if self.metric in metrics else float("inf")

    def _row(self, trial: Trial, measures: list[str]) -> list[Any]:
        latest = self._latest.get(trial.name)
        metrics = latest.metrics if latest else {}
        ended = trial.ended
        return [
            trial.folder.name,
            *(trial.sampled.get(path, "") for path in self._paths),
            latest.step if latest else "",
            *(metrics.get(name, "") for name in measures),
            ended["state"] if ended else "running",
        ]
