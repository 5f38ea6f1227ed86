"""A sweep's budget of time, over all drivers that work on it."""

from __future__ import annotations

import math
import time
from typing import Any

from headway.data.atomic import write_atomically
from headway.sweeps.ledger import Ledger, TrialState

_SECONDS_BETWEEN_LOOKS = 1.0


class TimeBudget:
    """Counts the seconds that drivers have worked on a sweep; on disk, so that the next driver continues.

    After the budget no trial begins, and all stop as soon as one has trained to its end. Until then the best
    continues, so that there is a model when the time is over.

    Args:
        ledger: of the sweep's trials.
        seconds: the budget; None for no limit.
        metric: by which the best is known.
        mode: `max` or `min`, the better values of the metric.
    """

    def __init__(self, ledger: Ledger, seconds: float | None, metric: str, mode: str) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._metric = metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._file = ledger.folder / "seconds_spent"
        self._before = float(self._file.read_text(encoding="utf-8")) if self._file.is_file() else 0.0
        self._began = time.monotonic()
        self._looked = -math.inf
        self._scores: dict[str, float] = {}
        self._is_over = False

    @property
    def is_spent(self) -> bool:
        """Whether the time is over."""
        return self._seconds is not None and self._spent() >= self._seconds

    def is_over(self) -> bool:
        """Whether the time is over and a trial has trained to its end; looks at the disk once a second."""
        now = time.monotonic()
        if self._seconds is not None and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            write_atomically(self._file, str(self._spent()))
            self._is_over = self.is_spent and self._finds_model()
        return self._is_over

    def ends(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial ends with this result, since the time is over and there is a better one."""
        self._scores[trial_id] = self._sign * result.get(self._metric, math.nan)
        if not self.is_spent or self._finds_model():
            return self.is_spent
        running = [score for other, score in self._scores.items() if not self._has_ended(other)]
        return self._scores[trial_id] != max(
            (score for score in running if not math.isnan(score)), default=None
        )

    def stopper(self) -> Any:
        """What Ray Tune asks after each result, and all the time."""
        from ray import tune
        from ray.tune.stopper import NoopStopper

        budget = self

        class Stopper(tune.Stopper):
            def __reduce__(self) -> Any:
                # Tune stores its stopper with the experiment; this one belongs to the living driver.
                return NoopStopper, ()

            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return budget.ends(trial_id, result)

            def stop_all(self) -> bool:
                return budget.is_over()

        return Stopper()

    def _spent(self) -> float:
        return self._before + time.monotonic() - self._began

    def _has_ended(self, trial_id: str) -> bool:
        # A trial that has reported is known by its id.
        return self._ledger.known_as(trial_id, 0).state.is_terminal

    def _finds_model(self) -> bool:
        return any(trial.state is TrialState.DONE for trial in self._ledger.trials())
