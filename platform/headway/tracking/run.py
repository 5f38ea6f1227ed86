"""One run in MLflow: metrics by step, settings, files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_METRICS_PER_CALL = 900
_MAX_TAG_CHARACTERS = 5000


@dataclass(frozen=True)
class Run:
    """One MLflow run; end it with `close`."""

    client: Any
    run_id: str

    def log_metrics(self, rows: Sequence[tuple[int, Mapping[str, float]]], times: Sequence[int] = ()) -> None:
        """Log metrics of several steps, given as (step, name → value), in few calls.

        Args:
            rows: what was measured.
            times: when, in milliseconds since the epoch; if not given, now.
        """
        from mlflow.entities import Metric

        times = times or [int(time.time() * 1000)] * len(rows)
        flat = [
            Metric(name, value, moment, step)
            for (step, metrics), moment in zip(rows, times, strict=True)
            for name, value in metrics.items()
        ]
        for start in range(0, len(flat), _MAX_METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=flat[start : start + _MAX_METRICS_PER_CALL])

    def logged_steps(self) -> dict[str, int]:
        """The last step at which each metric was logged."""
        names = self.client.get_run(self.run_id).data.metrics
        histories = {name: self.client.get_metric_history(self.run_id, name) for name in names}
        return {name: max(metric.step for metric in history) for name, history in histories.items()}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings that are not logged yet; nested ones under dotted names.

        MLflow lets none be changed: a run that continues with other workers keeps what it began with.
        """
        from mlflow.entities import Param

        logged = self.client.get_run(self.run_id).data.params
        flat = [Param(name, str(value)[:6000]) for name, value in _flatten(params) if name not in logged]
        for start in range(0, len(flat), 100):
            self.client.log_batch(self.run_id, params=flat[start : start + 100])

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Log a JSON artifact."""
        self.client.log_dict(self.run_id, dict(value), name)

    def log_file(self, path: Path) -> None:
        """Log a file as an artifact."""
        self.client.log_artifact(self.run_id, str(path))

    def last_step(self, metric: str) -> int:
        """The last step at which a metric was logged; -1 if it never was."""
        return max((entry.step for entry in self.client.get_metric_history(self.run_id, metric)), default=-1)

    def is_open(self) -> bool:
        """Whether nobody has ended the run yet."""
        return str(self.client.get_run(self.run_id).info.status) == "RUNNING"

    def close(self, status: str = "FINISHED", reason: str = "") -> None:
        """End the run: FINISHED, FAILED or KILLED; `reason` says why, as the tag `headway.reason`."""
        if reason:
            self.client.set_tag(self.run_id, "headway.reason", reason[:_MAX_TAG_CHARACTERS])
        self.client.set_terminated(self.run_id, status)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
