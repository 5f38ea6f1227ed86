"""Select the best model of a run, and end a run that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from headway.config.base import ConfigError
from headway.engine.training.trainer import Metrics

SMALLER_IS_BETTER = ("loss", "rmse", "latency_ms", "parameters", "latency_ratio", "size_ratio")
"""How the names of measures end for which smaller is better; for all others larger is."""


def is_better(measure: str, value: float, than: float) -> bool:
    """Whether one value of a measure is better than another; equal ones are not, and NaN is the worst."""
    if math.isnan(than):
        return not math.isnan(value)
    return value < than if measure.endswith(SMALLER_IS_BETTER) else value > than


class NoProgress(Exception):  # noqa: N818, it is not an error
    """The last `patience` evaluations of the run were not better than an earlier one."""


class Selection:
    """Follows the evaluations of a run, on every worker alike, since all get the same metrics.

    The rule is that of Prechelt 1998, "Early Stopping - But When?", section 2: stop after a number of
    evaluations in a row without a new best one.

    Attributes:
        best_step: the step after which the best model was measured; None before the first evaluation.
    """

    def __init__(
        self, measure: str, patience: int | None, keep: Callable[[int], None] = lambda step: None
    ) -> None:
        """Follow a measure on the validation rows; `keep` is called with the step of each new best."""
        self.measure = measure
        self.patience = patience
        self.keep = keep
        self.best_step: int | None = None
        self._best = float("nan")
        self._waited = 0

    def replay(self, history: Iterable[tuple[int, Metrics]]) -> None:
        """Take in the metrics from before the run was resumed."""
        for step, metrics in history:
            self._take(step, metrics)

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Take in the metrics measured after `step` steps.

        Raises:
            NoProgress: it is time to end the run.
            ConfigError: the measure is not among the metrics of the validation rows.
        """
        if self._take(step, metrics):
            self.keep(step)
        if self.patience is not None and self._waited >= self.patience:
            raise NoProgress

    def _take(self, step: int, metrics: Metrics) -> bool:
        """Whether these metrics are the best so far."""
        measured = {
            name.removeprefix("validation_"): value
            for name, value in metrics.items()
            if name.startswith("validation_")
        }
        if not measured:
            return False
        if self.measure not in measured:
            raise ConfigError(f"best_by: {self.measure!r} is not measured; allowed: {', '.join(measured)}")
        value = measured[self.measure]
        # The model before the first step is not a candidate, since it has not learnt anything yet.
        if step == 0:
            return False
        if self.best_step is None or is_better(self.measure, value, self._best):
            self.best_step, self._best, self._waited = step, value, 0
            return True
        self._waited += 1
        return False
