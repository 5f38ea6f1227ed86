"""What a sweep shows and tracks while it runs: a table on the screen, a child run a trial in MLflow."""

from __future__ import annotations

from typing import Any

from headway.config import SweepConfig
from headway.steps.context import Context
from headway.tracking import Run


class Leaderboard:
    """Follows the trials of one sweep."""

    def __init__(self, config: SweepConfig, context: Context, parent: Run) -> None:
        self._config = config
        self._context = context
        self._parent = parent
        self._runs: dict[str, Run] = {}
        self._trials: list[Any] = []
        self._finished: dict[str, str] = {}

    @property
    def stopped_early(self) -> int:
        """Trials that the scheduler ended before their last step."""
        return sum(state == "stopped" for state in self._finished.values())

    def callback(self) -> Any:
        """What Ray Tune calls in the driver, at each event of a trial."""
        from ray import tune

        board = self

        class Follow(tune.Callback):
            def __reduce__(self) -> Any:
                # Tune stores its callbacks with the experiment; this one belongs to the living driver.
                return tune.Callback, ()

            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                board.started(trials, trial)

            def on_trial_result(
                self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                board.reported(trial, result)

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                board.ended(trial, "done")

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                board.ended(trial, "failed")

        return Follow()

    def started(self, trials: list[Any], trial: Any) -> None:
        """A trial begins: so does its child run."""
        self._trials = list(trials)
        if trial.trial_id not in self._runs:
            self._runs[trial.trial_id] = self._context.tracking.start_run(
                self._context.experiment, f"trial {trial.trial_id}", trial.config, self._parent
            )

    def reported(self, trial: Any, result: dict[str, Any]) -> None:
        """A trial was evaluated."""
        metrics = {name: float(result[name]) for name in ("accuracy", "loss")}
        self._runs[trial.trial_id].log_metrics([(int(result["step"]), metrics)])
        self._context.display.live_table(*self._table())

    def ended(self, trial: Any, state: str) -> None:
        """A trial is over: trained to the end, stopped by the scheduler, or failed."""
        folder = self._context.folder / "trials" / trial.trial_id / "model"
        if state == "done" and not folder.is_dir():
            state = "stopped"
        self._finished[trial.trial_id] = state
        statuses = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._runs[trial.trial_id].close(statuses[state])
        self._context.display.live_table(*self._table())

    def show(self) -> None:
        """Leave the table on the screen."""
        self._context.display.table(*self._table())

    def _table(self) -> tuple[str, list[str], list[list[Any]]]:
        paths = list(self._config.search)
        columns = ["trial", *paths, "step", "accuracy", "loss", ""]
        rows = [self._row(trial, paths) for trial in self._trials]
        rows.sort(key=lambda row: -row[-3] if isinstance(row[-3], float) else 1.0)
        return "Sweep", columns, rows

    def _row(self, trial: Any, paths: list[str]) -> list[Any]:
        last = trial.last_result or {}
        values = [trial.config.get(path, "") for path in paths]
        state = self._finished.get(trial.trial_id, trial.status.lower())
        return [
            trial.trial_id,
            *values,
            last.get("step", ""),
            last.get("accuracy", ""),
            last.get("loss", ""),
            state,
        ]
