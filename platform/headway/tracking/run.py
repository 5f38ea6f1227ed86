"""One run in MLflow: metrics by step, settings, files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway.tracking.data_split import DataSplit, dataset_inputs
from headway.tracking.outage import PatientClient

_MAX_METRICS_PER_CALL = 900
_MAX_TAG_CHARACTERS = 5000
_MAX_PARAMS_PER_CALL = 100


@dataclass(frozen=True)
class Run:
    """One MLflow run; end it with `close`.

    Attributes:
        client: MLflow's.
        run_id: MLflow's.
        experiment_id: of the experiment that it is in.
        tags: what it was made with, which its children are made with too.
    """

    client: Any
    run_id: str
    experiment_id: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def impatient(self) -> Run:
        """The same run, whose calls raise at once if the server is away."""
        waits = isinstance(self.client, PatientClient)
        return replace(self, client=self.client.impatient) if waits else self

    def log_metrics(
        self,
        rows: Sequence[tuple[int, Mapping[str, float]]],
        times: Sequence[int] = (),
        model_id: str | None = None,
        data: DataSplit | None = None,
    ) -> None:
        """Log metrics of several steps, given as (step, name → value), in few calls.

        Args:
            rows: what was measured.
            times: when, in milliseconds since the epoch; if not given, now.
            model_id: the logged model that was measured; its page shows them too.
            data: what it was measured on.
        """
        from mlflow.entities import Metric

        times = times or [int(time.time() * 1000)] * len(rows)
        measured: dict[str, Any] = {"model_id": model_id, "run_id": self.run_id}
        if data is not None:
            measured |= {"dataset_name": data.name, "dataset_digest": data.digest}
        flat = [
            Metric(name, value, moment, step, **measured)
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
        self.log_new_params(params, self.client.get_run(self.run_id).data.params)

    def log_new_params(self, params: Mapping[str, Any], logged: Mapping[str, str]) -> None:
        """Log settings other than those that are known to be logged."""
        from mlflow.entities import Param

        flat = [Param(name, value) for name, value in flat_params(params).items() if name not in logged]
        for start in range(0, len(flat), _MAX_PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=flat[start : start + _MAX_PARAMS_PER_CALL])

    def log_inputs(self, splits: Sequence[DataSplit], model_ids: Sequence[str] = ()) -> None:
        """Log what the run reads: rows, and logged models."""
        from mlflow.entities import LoggedModelInput

        models = [LoggedModelInput(model_id) for model_id in model_ids]
        if splits or models:
            self.client.log_inputs(self.run_id, dataset_inputs(splits), models)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, in one call."""
        from mlflow.entities import RunTag

        if tags:
            self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self.client.log_text(self.run_id, text, name)

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

    def abandon(self, status: str, reason: str = "") -> None:
        """End the run without waiting for a server that is away: what went wrong matters more."""
        with contextlib.suppress(Exception):
            self.impatient().close(status, reason)


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow keeps them: texts, nested ones under dotted names."""
    return {name: str(value)[:6000] for name, value in _flatten(params)}


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
