"""Which evaluation of a run was the best, and when to end a run that gets no better."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headway.config.base import ConfigError
from headway.engine.training.trainer import Metrics

SMALLER_IS_BETTER = ("loss", "rmse", "latency_ms", "parameters")
"""Endings of the names of measures that are to be low; all others are to be high."""


def is_better(measure: str, value: float, than: float) -> bool:
    """Whether one value of a measure beats another; equal ones do not."""
    return value < than if measure.endswith(SMALLER_IS_BETTER) else value > than


class NoProgress(Exception):  # noqa: N818 (not an error: the run has got as far as it will)
    """The run has had its patience's worth of evaluations without a better one."""


class Selection:
    """Follows the evaluations of one run; the same on every worker, since they measure the same.

    Prechelt 1998, "Early Stopping - But When?", section 2: stop after so many evaluations in a row
    without a new best one.

    Attributes:
        best_step: steps after which the best model was measured; None before the first evaluation.
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
        """Take in what the run had measured before it was resumed."""
        for step, metrics in history:
            self._take(step, metrics)

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Take in what was measured after so many steps.

        Raises:
            NoProgress: it is time to end the run.
            ConfigError: the measure is none of those taken on the validation rows.
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
        # The model as it came in is no candidate: nothing has been learnt yet.
        if step == 0:
            return False
        if self.best_step is None or is_better(self.measure, value, self._best):
            self.best_step, self._best, self._waited = step, value, 0
            return True
        self._waited += 1
        return False
