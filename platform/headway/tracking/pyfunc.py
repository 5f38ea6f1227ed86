"""Writes a classifier as an MLflow model that loads without Headway."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from headway.data.atomic import link_or_copy


def log_classifier(
    client: Any, experiment_id: str, run_id: str, name: str, weights: Path, example: str, max_length: int
) -> Any:
    """Log a classifier's folder as a model of a run; returns MLflow's logged model.

    Args:
        client: MLflow's.
        experiment_id: of the run.
        run_id: of the run that the model belongs to.
        name: of the model.
        weights: a folder of transformers' `save_pretrained`, with the tokenizer.
        example: a text, stored as the input example.
        max_length: tokens after which a text is cut.
    """
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, model_type="classifier"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_pyfunc(Path(folder) / "model", logged, run_id, weights, example, max_length)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def save_pyfunc(target: Path, logged: Any, run_id: str, weights: Path, example: str, max_length: int) -> None:
    """Write a classifier's folder as an MLflow pyfunc model, with a signature and an example, without pickle.

    Args:
        target: the folder to create.
        logged: MLflow's logged model that the files belong to.
        run_id: of the run that it belongs to.
        weights: a folder of transformers' `save_pretrained`, with the tokenizer.
        example: a text, stored as the input example.
        max_length: tokens after which a text is cut.
    """
    import mlflow
    import pandas
    import torch
    import transformers
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text")]),
        outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        # MLflow keeps the name of the folder, so a copy gives it a fixed one; it refuses symbolic links.
        copy = Path(folder) / "weights"
        shutil.copytree(weights, copy, copy_function=link_or_copy)
        mlflow.pyfunc.save_model(
            target,
            python_model=str(Path(__file__).parents[1] / "serving" / "pyfunc_classifier.py"),
            artifacts={"weights": str(copy)},
            signature=signature,
            input_example=pandas.DataFrame({"text": [example]}),
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"transformers=={transformers.__version__}",
            ],
            model_config={"max_length": max_length},
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            ),
        )
