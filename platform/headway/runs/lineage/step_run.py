"""The MLflow run of a step: under its pipeline's, with what it was made of."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headway.config.base import Config, ConfigError
from headway.data.atomic import write_atomically
from headway.runs.context import Context
from headway.runs.lineage.provenance import DATA_DIGEST, SETTINGS_DIGEST, digest_of, digest_of_all, provenance
from headway.tracking import Run
from headway.tracking.data_split import DataSplit

_FILE = "run.json"


@contextmanager
def step_run(
    config: Config,
    context: Context,
    data: Sequence[DataSplit] = (),
) -> Iterator[Run]:
    """A step's MLflow run; a run that an earlier driver of this step began is continued.

    Args:
        config: of the step.
        context: of the step.
        data: rows that it reads, as far as they are known; `add_data` adds more.

    Raises:
        ConfigError: no MLflow server answers.
    """
    context.tracking.experiment_id(context.experiment)  # an address that is wrong is told at once
    token_file = context.folder / "token"
    if not token_file.exists():
        write_atomically(token_file, uuid.uuid4().hex)
    token = token_file.read_text(encoding="utf-8")
    tracking = context.tracking.patient()
    settings = config.model_dump(mode="json")
    tags = step_tags(config, data)
    parent = step_parent(context, data)
    try:
        with tracking.run(context.experiment, context.step, settings, token, parent, tags) as run:
            record_run(context, run)
            run.log_inputs(data)
            yield run
    except ConfigError:
        for file in (token_file, context.folder / _FILE):
            file.unlink(missing_ok=True)
        raise


def record_run(context: Context, run: Run) -> None:
    """Write down in the step's folder which run made it."""
    write_atomically(context.folder / _FILE, json.dumps({"run_id": run.run_id}))


def recorded_run(folder: Path) -> str:
    """The id of the run that made what is in a step's folder; empty if none did."""
    file = folder / _FILE
    return json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else ""


def add_data(run: Run, context: Context, data: Sequence[DataSplit]) -> None:
    """Log rows that a step reads, which were not known when its run began."""
    digest = _digest(data)
    run.log_inputs(data)
    run.set_tags({DATA_DIGEST: digest})
    if context.pipeline is not None:
        context.pipeline.add_data(digest)


def add_models(run: Run, context: Context, models: Iterable[tuple[str, Path]]) -> None:
    """Log models that a step reads, each by its reference and its folder, as far as MLflow knows them."""
    tracking = context.tracking.patient()
    known = [tracking.logged_model(reference, folder) for reference, folder in models]
    run.log_inputs([], [model_id for model_id in known if model_id is not None])


def step_tags(config: Config, data: Sequence[DataSplit]) -> dict[str, str]:
    """Tags of a step's run: what it was made with, and digests of its settings and its data."""
    tags = {**provenance(), SETTINGS_DIGEST: digest_of(config.result_settings()), DATA_DIGEST: _digest(data)}
    return {name: value for name, value in tags.items() if value}


def step_parent(context: Context, data: Sequence[DataSplit]) -> Run | None:
    """The run of the pipeline that a step which reads these rows is part of, if it is part of one."""
    if context.pipeline is None:
        return None
    context.pipeline.add_data(_digest(data))
    return context.pipeline.begin()


def _digest(data: Sequence[DataSplit]) -> str:
    return digest_of_all(split.digest for split in data)
