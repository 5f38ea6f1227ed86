"""Failures of a training group that no second try would heal: they are told at once, as what they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.train import ControllerError, UserCallback, WorkerGroupError

from headway.config.base import ConfigError
from headway.engine.training.health import TrainingError

LASTING = (ConfigError, TrainingError)
"""Raised by a worker again and again: by a wrong setting, or a loss that is no number."""


class EndAtOnce(UserCallback):
    """Has Ray Train give up on a group that failed for good, whatever tries are left."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise what a worker raised: after a callback's error, Ray Train tries nothing again."""
        found = _lasting(worker_exceptions.values())
        if found is not None:
            raise found


def lasting_cause(failure: BaseException) -> Exception | None:
    """What a worker raised, if trying again would not heal it.

    Args:
        failure: what Ray Train's `fit()` raised.
    """
    while isinstance(failure, ControllerError):
        failure = failure.controller_failure
    if isinstance(failure, WorkerGroupError):
        return _lasting(failure.worker_failures.values())
    return _lasting([failure])


def _lasting(failures: Iterable[BaseException]) -> Exception | None:
    return next((failure for failure in failures if isinstance(failure, LASTING)), None)
