"""Which trial of a sweep won, by one metric or several, and how that is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.engine.training.early_stopping import SMALLER_IS_BETTER
from headway.runs.journal import read_journal
from headway.runs.training import chosen_metrics
from headway.sweeps.ledger import Ledger, Trial, TrialState, validation_metrics


class Measured(NamedTuple):
    """A trial that trained to its end, and the validation metrics of the model it saved."""

    trial: Trial
    metrics: dict[str, float]


class Outcome(NamedTuple):
    """How a trial ended.

    Attributes:
        state: trained to its end, stopped, or failed.
        metrics: on the validation rows: of the model it saved, or, if it was stopped, of the last evaluation;
            empty if it failed.
        round: of the last evaluation; 0 without one.
    """

    state: TrialState
    metrics: dict[str, float]
    round: int


SettingsOf = Callable[[dict[str, Any]], TrainingConfig]
"""Takes a trial's values and returns its settings, which say what model it kept."""


def outcome_of(trial: Trial, state: TrialState, settings_of: SettingsOf) -> Outcome:
    """How a trial ended, in a state that may not be recorded yet, from what it measured."""
    measured = trial.evaluations()
    if state is TrialState.FAILED or not measured:
        return Outcome(state, {}, 0)
    metrics = measured[-1].metrics
    if state is TrialState.DONE:
        metrics = measured_by(trial, settings_of(trial.sampled))
    return Outcome(state, metrics, trial.round_of(measured[-1].step))


def mode_of(metric: str) -> str:
    """`min` or `max`: which values of a metric are better."""
    return "min" if metric.endswith(SMALLER_IS_BETTER) else "max"


def finished_trials(ledger: Ledger, settings_of: SettingsOf, metrics: list[str]) -> list[Measured]:
    """The trials that trained to their end, in their order.

    Raises:
        RuntimeError: there is none.
        ConfigError: a metric is not measured.
    """
    finished: list[Measured] = []
    reasons = []
    for trial in ledger.trials():
        if trial.state is TrialState.DONE:
            measured = measured_by(trial, settings_of(trial.sampled))
            for metric in metrics:
                if metric not in measured:
                    raise ConfigError(f"metric: {metric!r} is not measured; allowed: {', '.join(measured)}")
            finished.append(Measured(trial, measured))
        elif trial.ended is not None and trial.ended.reason:
            reasons.append(trial.ended.reason)
    if not finished:
        raise RuntimeError(f"no trial of the sweep finished: {reasons[0] if reasons else 'none was run'}")
    return finished


def pareto_front(trials: list[Measured], metrics: list[str]) -> list[Measured]:
    """The trials that no other one beats in one metric without being worse in another."""
    points = [tuple(_cost(trial, metric) for metric in metrics) for trial in trials]

    def dominated(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points
        )

    return [trial for trial, point in zip(trials, points, strict=True) if not dominated(point)]


def winner_of(trials: list[Measured], metrics: list[str], tolerance: float) -> Measured:
    """The best trial by the first metric; with several metrics, the one that `rule` describes."""
    first, *others = metrics
    near = trials
    if others:
        front = pareto_front(trials, metrics)
        limit = min(_cost(trial, first) for trial in front) + tolerance
        near = [trial for trial in front if _cost(trial, first) <= limit]
    order = [*others, first, "loss"]
    return min(near, key=lambda trial: [_cost(trial, metric) for metric in order])


def contenders(trials: list[Measured], metrics: list[str]) -> list[Measured]:
    """Those that win now, or may win once more trials have ended; all others are beaten for good.

    With several metrics, any trial on the Pareto front may win: which are within `tolerance` of the best
    depends on trials to come, but no trial that is off the front ever returns to it.
    """
    if not trials:
        return []
    return pareto_front(trials, metrics) if len(metrics) > 1 else [winner_of(trials, metrics, 0.0)]


def measured_by(trial: Trial, settings: TrainingConfig) -> dict[str, float]:
    """The validation metrics of the model that a trial with these settings saved."""
    return validation_metrics(chosen_metrics(read_journal(trial.journal), settings))


def rule(metrics: list[str], tolerance: float) -> str:
    """How the winner is chosen, in words."""
    first, *others = metrics
    if not others:
        return f"best {first}"
    return f"best {others[0]} on the Pareto front among those within {tolerance:g} of the best {first}"


def _cost(trial: Measured, metric: str) -> float:
    """A metric's value with its sign set so that less is better; NaN is worst."""
    value = trial.metrics.get(metric, math.nan)
    if math.isnan(value):
        return math.inf
    return value if mode_of(metric) == "min" else -value


def summary_of(ledger: Ledger, winner: Measured, metric: str) -> dict[str, Any]:
    """The summary of a sweep."""
    states = [trial.state for trial in ledger.trials()]
    return {
        "trials": len(states),
        "failed": states.count(TrialState.FAILED),
        "stopped_early": states.count(TrialState.STOPPED),
        "metric": metric,
        "best": described(winner),
    }


def described(measured: Measured) -> dict[str, Any]:
    """A trial's name, values and measurements."""
    trial = measured.trial
    return {"trial": trial.folder.name, "settings": trial.sampled, **measured.metrics}


def headline(summary: dict[str, Any], metrics: list[str]) -> str:
    """A sweep in one line."""
    best, metric = summary["best"], summary["metric"]
    settings = ", ".join(f"{path} {_brief(value)}" for path, value in best["settings"].items())
    more = "".join(f", {name} {_brief(best[name])}" for name in metrics[1:])
    test = f"; held-out {metric} {summary['test'][metric]:.4f}" if metric in summary.get("test", {}) else ""
    front = f"; {len(summary['front'])} on the Pareto front" if "front" in summary else ""
    best_word = "best validation" if not more else "winner's validation"
    return (
        f"{summary['trials']} trials, {summary['stopped_early']} stopped early, {summary['failed']} failed; "
        f"{best_word} {metric} {best[metric]:.4f}{more} with {settings}{test}{front}"
    )


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
