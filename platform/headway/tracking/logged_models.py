"""Trained encoders as MLflow's logged models, which refer to their folders instead of copying them.

`logged_model.json` beside a model's folder says which logged model it is.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.data.atomic import write_atomically
from headway.tracking.data_split import DataSplit
from headway.tracking.run import Run, flat_params

FOLDER = "headway.folder"
"""Tag of a logged model with the folder that it stands for."""

_EXTERNAL = "mlflow.model.isExternal"
"""MLflow's tag of logged models whose files lie elsewhere."""

_FILE = "logged_model.json"
_NOT_IN_NAMES = re.compile(r"""[/:.%"']""")


@dataclass(frozen=True)
class Scores:
    """What a model was measured to be.

    Attributes:
        metrics: name → value.
        data: the rows that it was measured on.
        step: of the training, at which it was.
        time: when, in milliseconds since the epoch; 0 for now.
    """

    metrics: Mapping[str, float]
    data: DataSplit
    step: int = 0
    time: int = 0


def log_reference(
    run: Run,
    name: str,
    folder: Path,
    kind: str,
    params: Mapping[str, Any],
    scores: Sequence[Scores] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log a trained encoder as an output of a run, with its scores; returns the id of the logged model.

    Called again for the same folder, as by a step that is continued, it logs only the scores.

    Args:
        run: that trained it.
        name: of the logged model.
        folder: of transformers' `save_pretrained`.
        kind: what it is, such as `pretrain` or `classification`.
        params: the settings that it was trained with.
        scores: on which data it was measured, and how it scored.
        tags: of the logged model, besides those of the run.
    """
    model_id = logged_model_of(run.client, folder)
    if model_id is None:
        model_id = _create(run, name, folder, kind, flat_params(params), {**run.tags, **(tags or {})})
    log_scores(run, model_id, scores)
    return model_id


def log_scores(run: Run, model_id: str, scores: Sequence[Scores]) -> None:
    """Log a model's scores on its page and in a run, so that models can be searched by them."""
    for measured in scores:
        times = [measured.time] if measured.time else []
        # MLflow would keep what is not a number as 0 there, which for a loss is the best.
        numbers = {name: value for name, value in measured.metrics.items() if not math.isnan(value)}
        run.log_metrics([(measured.step, numbers)], times, model_id, measured.data)


def logged_model_of(client: Any, folder: Path) -> str | None:
    """The id of the logged model that stands for a folder; None if this server has none."""
    from mlflow.exceptions import MlflowException

    path = folder.parent / _FILE
    if not path.is_file():
        return None
    model_id: str = json.loads(path.read_text(encoding="utf-8"))["model_id"]
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return model_id


def is_reference(logged: Any) -> bool:
    """Whether a logged model only refers to a folder."""
    return bool(logged.tags.get(_EXTERNAL) == "true")


def has_files(client: Any, logged: Any) -> None:
    """Tell MLflow that a logged model's files lie where it keeps them now."""
    client.delete_logged_model_tag(logged.model_id, _EXTERNAL)


def _create(
    run: Run, name: str, folder: Path, kind: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client = run.client
    logged = client.create_logged_model(
        run.experiment_id,
        name=_NOT_IN_NAMES.sub("-", name),
        source_run_id=run.run_id,
        tags={**tags, FOLDER: str(folder.resolve()), _EXTERNAL: "true"},
        params=params,
        model_type=kind,
    )
    # As `mlflow.create_external_model` does: a description without files, so that its page opens.
    with tempfile.TemporaryDirectory() as draft:
        Model(
            artifact_path=logged.artifact_location,
            run_id=run.run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            metadata={_EXTERNAL: True, FOLDER: str(folder.resolve())},
        ).save(str(Path(draft) / "MLmodel"))
        client.log_model_artifacts(logged.model_id, draft)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    about = {"model_id": logged.model_id, "run_id": run.run_id}
    write_atomically(folder.parent / _FILE, json.dumps(about))
    model_id: str = logged.model_id
    return model_id
