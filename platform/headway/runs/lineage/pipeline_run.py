"""The MLflow run of a whole pipeline, above the runs of its steps."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from headway.data.atomic import write_atomically
from headway.runs.lineage.provenance import DATA_DIGEST, SETTINGS_DIGEST, digest_of, digest_of_all, provenance
from headway.tracking import Run, Tracking

CACHED = "headway.cached"
"""Tag of a child run that stands for a step that was done before: `true`."""

MADE_BY = "headway.made_by"
"""Tag of such a run with the id of the run that did the work."""


class PipelineRun:
    """Begins with the first step that is not cached: a pipeline that has nothing to do leaves no run.

    Steps that were done before have a child run each, which ends at once, refers to the run that did the work
    and has no settings and metrics of its own: it takes no part in comparisons of runs.

    A driver that died left the run's token in `folder`: the next one with the same settings continues it.

    Args:
        name: of the pipeline, and of its MLflow experiment.
        settings: of the pipeline, in JSON's types.
        folder: of the pipeline.
        tracking: MLflow.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path, tracking: Tracking) -> None:
        self._name = name
        self._settings = settings
        self._token_file = folder / "pipeline.json"
        self._tracking = tracking
        self._run: Run | None = None
        self._cached: list[tuple[str, str]] = []
        self._shown: set[str] = set()
        self._data_digests: list[str] = []

    def begin(self) -> Run:
        """The run; started at the first call.

        Raises:
            ConfigError: no MLflow server answers.
        """
        if self._run is None:
            self._tracking.experiment_id(self._name)  # an address that is wrong is told at once
            self._run = self._begun()
            for step, made_by in self._cached:
                self._show_cached(self._run, step, made_by)
        return self._run

    def _begun(self) -> Run:
        tracking, token = self._tracking.patient(), self._token()
        tags = provenance() | {SETTINGS_DIGEST: digest_of(self._settings)}
        run = tracking.continued_run(self._name, token, {}, None, tags)
        if run is None:
            run = tracking.start_run(self._name, self._name, token=token, tags=tags)
        else:
            for run_id, known in tracking.tags_of_children(run).items():
                self._shown |= {run_id, known.get(MADE_BY, run_id)}
        run.log_text(yaml.safe_dump(dict(self._settings), sort_keys=False), "pipeline.yaml")
        return run

    def _token(self) -> str:
        """The token of the run that an earlier driver did not bring to its end, or a new one."""
        settings = digest_of(self._settings)
        if self._token_file.is_file():
            earlier = json.loads(self._token_file.read_text(encoding="utf-8"))
            if earlier["settings"] == settings:
                return str(earlier["token"])
        token = uuid.uuid4().hex
        write_atomically(self._token_file, json.dumps({"token": token, "settings": settings}))
        return token

    def add_data(self, digest: str) -> None:
        """Take note of the data that a step reads."""
        self._data_digests.append(digest)

    def add_cached(self, step: str, made_by: str) -> None:
        """Show a step that was done before.

        Args:
            step: its name.
            made_by: id of the run that did the work; empty if it had none.
        """
        self._cached.append((step, made_by))
        if self._run is not None:
            self._show_cached(self._run, step, made_by)

    def _show_cached(self, parent: Run, step: str, made_by: str) -> None:
        if made_by in self._shown:  # by the driver before, whose run this one continues
            return
        note = "Cached: this step was done before"
        if made_by:
            link = f"#/experiments/{parent.experiment_id}/runs/{made_by}"
            note += f", by the run [{made_by}]({link})"
        tags = {CACHED: "true", "mlflow.note.content": f"{note}."} | ({MADE_BY: made_by} if made_by else {})
        child = self._tracking.patient().start_run(self._name, f"{step} (cached)", parent=parent, tags=tags)
        child.close()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the run with the block, as `Tracking.run` does, if it has begun."""
        try:
            yield
        except KeyboardInterrupt:
            self._close_unfinished("KILLED")
            raise
        except BaseException:
            self._close_unfinished("FAILED")
            raise
        if self._run is not None:
            self._close(self._run, "FINISHED")
        self._token_file.unlink(missing_ok=True)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Log the summary of the steps, and their figures as `<step>/<figure>`."""
        if self._run is None:
            return
        metrics = {
            f"{step}/{name}": float(value)
            for step, figures in summary.items()
            if isinstance(figures, Mapping)
            for name, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._run.log_metrics([(0, metrics)], [int(time.time() * 1000)])
        self._run.log_dict(summary, "summary.json")

    def _close_unfinished(self, status: str) -> None:
        """Close without waiting for a server that is away; what went wrong matters more than its run."""
        if self._run is not None:
            with suppress(Exception):
                self._close(self._run.impatient(), status)

    def _close(self, run: Run, status: str) -> None:
        run.set_tags({DATA_DIGEST: digest_of_all(self._data_digests)})
        run.close(status)
