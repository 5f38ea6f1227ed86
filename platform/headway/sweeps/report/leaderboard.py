"""Follows a sweep while it runs, in memory: what each of its trials measured last, and a table of the best.

Ray Tune calls it in its loop, where all trials wait for it. So whatever touches a disk or a server is left
to the threads of `TrialLog` and `EndedTrials`, and nothing here takes longer the more trials there are, but
for the table, which is drawn at most once a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from headway.display import Display
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ending, Ledger, Trial, TrialState
from headway.sweeps.population import PopulationStates
from headway.sweeps.report.trial_log import TrialLog
from headway.sweeps.winner import mode_of

_MAX_ROWS = 20
_SECONDS_BETWEEN_TABLES = 1.0
_HAS_STATE = "should_checkpoint"
"""Set in Ray Tune's result if the trial reported a state with it (`ray.tune.result.SHOULD_CHECKPOINT`)."""


@dataclass
class _Row:
    """What the table shows of a trial."""

    trial: Trial
    sampled: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Leaderboard:
    """Follows the trials of one sweep.

    Attributes:
        metrics: what the sweep optimises; the first ranks its trials.
        metric: the first metric.
        mode: `max` or `min`, the better values of that metric.

    Args:
        ledger: of the trials.
        display: the screen.
        paths: of the settings that are searched.
        metrics: as above.
        log: told of each trial that has changed.
        ended: told of each trial that has ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        display: Display,
        paths: list[str],
        metrics: list[str],
        log: TrialLog,
        ended: EndedTrials,
    ) -> None:
        self.metrics = metrics
        self.metric = metrics[0]
        self.mode = mode_of(self.metric)
        self._sign = -1.0 if self.mode == "max" else 1.0
        self._measures = list(dict.fromkeys([*metrics, "loss"]))
        self._ledger = ledger
        self._display = display
        self._paths = paths
        self._log = log
        self._ended = ended
        self._rows: dict[int, _Row] = {}
        self._known: dict[str, Trial] = {}
        self._states = PopulationStates()
        self._drawn = 0.0

    def reconcile(self) -> None:
        """Take in what the trials of an earlier driver left on disk, and bring MLflow up to date with it."""
        for trial in self._ledger.trials():
            row = self._rows[trial.number] = _Row(trial, trial.sampled)
            if evaluations := trial.evaluations():
                row.step, row.metrics = evaluations[-1].step, evaluations[-1].metrics
            ending = trial.ended
            if ending is not None:
                row.state = ending.state
            self._log.changed(trial, ending)

    def callback(self) -> Any:
        """What Ray Tune calls in the driver at each event of a trial."""
        from ray import tune

        board = self

        class Follow(tune.Callback):
            def __reduce__(self) -> Any:
                # Tune stores its callbacks with the experiment; this one belongs to the living driver.
                return tune.Callback, ()

            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                board._changed(trial)

            def on_trial_result(
                self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
            ) -> None:
                board._changed(trial, result)

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                # A trial records by itself that it trained to its end; otherwise the scheduler stopped it.
                board._has_ended(trial, Ending(TrialState.STOPPED, ""))

            def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                details = str(trial.get_error() or "").strip()
                reason = details.splitlines()[-1] if details else ""
                board._has_ended(trial, Ending(TrialState.FAILED, reason), details)

        return Follow()

    def _trial(self, trial: Any) -> Trial:
        """The trial that Ray Tune means; a clone takes over the number of another, but keeps its own id."""
        if trial.trial_id not in self._known:
            number = trial.config["point"]["number"]
            self._known[trial.trial_id] = self._ledger.known_as(trial.trial_id, number)
        return self._known[trial.trial_id]

    def _changed(self, tune_trial: Any, result: dict[str, Any] | None = None) -> None:
        trial = self._trial(tune_trial)
        row = self._rows.setdefault(trial.number, _Row(trial, {}))
        row.sampled = tune_trial.config["point"]["sampled"]
        if result is not None:
            row.step = result["step"]
            row.metrics = {name: result[name] for name in self._measures if name in result}
            if result.get(_HAS_STATE):
                self._ended.delete(self._states.reported(trial, result["step"]))
        self._log.changed(trial)
        self._draw()

    def _has_ended(self, tune_trial: Any, ending: Ending, details: str = "") -> None:
        self.end(self._trial(tune_trial), ending, details)

    def end(self, trial: Trial, ending: Ending, details: str = "") -> None:
        """Have a trial settled as `EndedTrials` does, and then shown and logged; returns at once.

        Args:
            trial: which.
            ending: how it ended, unless it has recorded that itself.
            details: what went wrong, with tracebacks.
        """
        if trial.number not in self._rows:
            self._rows[trial.number] = _Row(trial, trial.sampled)
        self._ended.add(trial, ending, self._tell_ending, details)
        self._ended.delete(self._states.ended(trial))

    def _tell_ending(self, trial: Trial, ending: Ending) -> None:
        """Called by a thread, once it is known how the trial ended."""
        self._rows[trial.number].state = ending.state
        self._log.changed(trial, ending)

    def show(self) -> None:
        """Leave the table on the screen."""
        self._display.table(*self._table())

    def _draw(self) -> None:
        now = time.monotonic()
        if self._display.console.is_terminal and now - self._drawn > _SECONDS_BETWEEN_TABLES:
            self._drawn = now
            self._display.live_table(*self._table())

    def _table(self) -> tuple[str, list[str], list[list[Any]]]:
        columns = ["trial", *self._paths, "step", *self._measures, ""]
        rows = sorted(self._rows.values(), key=lambda row: (self._rank(row), row.trial.number))
        title = "Sweep"
        if len(rows) > _MAX_ROWS:
            states = [row.state for row in rows]
            counts = ", ".join(f"{states.count(state)} {state}" for state in TrialState if state in states)
            title = f"Sweep: the best {_MAX_ROWS} of {len(rows)} trials ({counts})"
        return title, columns, [self._cells(row) for row in rows[:_MAX_ROWS]]

    def _rank(self, row: _Row) -> float:
        value = self._sign * row.metrics.get(self.metric, float("inf") * self._sign)
        return float("inf") if value != value else value

    def _cells(self, row: _Row) -> list[Any]:
        return [
            row.trial.folder.name,
            *(row.sampled.get(path, "") for path in self._paths),
            "" if row.step is None else row.step,
            *(row.metrics.get(name, "") for name in self._measures),
            row.state,
        ]
