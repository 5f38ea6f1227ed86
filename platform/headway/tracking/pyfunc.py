"""An encoder as the files of an MLflow model, which load where Headway is not installed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.data.atomic import link_or_copy

if TYPE_CHECKING:
    from headway.inference.description import Kind

_PACKAGE = Path(__file__).parents[1]
TRAVELS = ("config", "data", "engine", "inference", "redaction.py")
"""The part of Headway that answers texts: what a server computes with, and no more."""

_QUESTION = "What is this about?"


def log_model(
    client: Any, experiment_id: str, run_id: str, name: str, weights: Path, example: str, kind: Kind
) -> Any:
    """Log an encoder's folder as a model of a run; returns MLflow's logged model.

    Args:
        client: MLflow's.
        experiment_id: of the run.
        run_id: of the run that the model belongs to.
        name: of the model.
        weights: a folder of transformers' `save_pretrained`, with the tokenizer.
        example: a text, stored as the input example.
        kind: what it answers.
    """
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, model_type=kind)
    try:
        add_files(client, logged, weights, example, kind)
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def add_files(client: Any, logged: Any, weights: Path, example: str, kind: Kind) -> None:
    """Give a logged model an encoder's files; see `log_model`."""
    with tempfile.TemporaryDirectory() as folder:
        save_pyfunc(Path(folder) / "model", logged, logged.source_run_id, weights, example, kind)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))


def save_pyfunc(target: Path, logged: Any, run_id: str, weights: Path, example: str, kind: Kind) -> None:
    """Write an encoder's folder as an MLflow pyfunc model, with a signature and an example, without pickle.

    Args:
        target: the folder to create.
        logged: MLflow's logged model that the files belong to.
        run_id: of the run that it belongs to.
        weights: a folder of transformers' `save_pretrained`, with the tokenizer.
        example: a text, stored as the input example.
        kind: what it answers.
    """
    import mlflow
    import pandas
    import torch
    import transformers
    from mlflow.models import Model

    inputs = {"text": [example]} | ({"question": [_QUESTION]} if kind == "answers" else {})
    with tempfile.TemporaryDirectory() as folder:
        # MLflow keeps the name of the folder, so a copy gives it a fixed one; it refuses symbolic links.
        copy = Path(folder) / "weights"
        shutil.copytree(weights, copy, copy_function=link_or_copy)
        mlflow.pyfunc.save_model(
            target,
            python_model=str(_PACKAGE / "tracking" / "pyfunc_model.py"),
            artifacts={"weights": str(copy)},
            code_paths=[str(_code(Path(folder) / _PACKAGE.name))],
            signature=_signature(kind, list(inputs)),
            input_example=pandas.DataFrame(inputs),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"transformers=={transformers.__version__}",
            ],
            model_config={"precision": "fp32"},
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
        )


def _code(target: Path) -> Path:
    """The part of Headway that answers texts, copied to a folder."""
    target.mkdir()
    for name in ("__init__.py", *TRAVELS):
        if (_PACKAGE / name).is_file():
            shutil.copy(_PACKAGE / name, target)
        else:
            shutil.copytree(_PACKAGE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _signature(kind: Kind, inputs: list[str]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Map, Object, Property

    text, number, place = DataType.string, DataType.double, DataType.long
    candidate = Object([Property("token", text), Property("score", number)])
    span = [Property("text", text), Property("start", place), Property("end", place)]
    span.append(Property("score", number))
    outputs: dict[Kind, dict[str, Any]] = {
        "label": {"label": text, "score": number},
        "labels": {"labels": Array(text), "scores": Map(number)},
        "score": {"score": number},
        "entities": {"entities": Array(Object([Property("label", text), *span]))},
        "masks": {"masks": Array(Array(candidate))},
        "answers": {"answers": Array(Object(span))},
        "embedding": {"embedding": Array(DataType.float)},
    }
    return ModelSignature(
        inputs=Schema([ColSpec(text, name) for name in inputs]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs[kind].items()]),
    )
