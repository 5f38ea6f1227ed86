"""Scores of fine-tuned models on a split of their task, computed where models are trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headway.cluster import connect
from headway.cluster.worker_group import call_resources
from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import TaskObjective
from headway.engine.training.scoring import predict
from headway.engine.training.trainer import Trainer
from headway.runs.context import Context
from headway.runs.finetuning import FinetuningJob
from headway.tasks.classification import Classification, classification_scores
from headway.tasks.task import Task, open_task


def score_models(
    models: Sequence[Path], tasks: Sequence[Task], context: Context, split: str = "test"
) -> list[dict[str, Any]]:
    """Scores of each saved model on a split of its task, computed where models are trained.

    That is this machine or, since the driver may have no GPU and few cores, a node of the cluster.

    Raises:
        ConfigError: a model's labels are others than the task's, or no cluster answers.
    """
    if connect.will_be_local(context.address):
        return [score_model(model, task, split) for model, task in zip(models, tasks, strict=True)]
    context.join_cluster()
    resources = call_resources(len(models))
    calls = [
        (model.resolve(), task.folder.resolve(), split, resources.cpus)
        for model, task in zip(models, tasks, strict=True)
    ]
    return connect.map_on_cluster(_score_folder, calls, resources.cpus, resources.gpus)


def _score_folder(model: Path, task: Path, split: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return score_model(model, open_task(task), split)


def score_model(model: Path, task: Task, split: str = "test") -> dict[str, Any]:
    """Scores of a saved model on a split of the task: by default, its held-out rows.

    Raises:
        ConfigError: the model's labels, or the tokens that its ids stand for, are not the task's.
    """
    settings = finetune_settings(model, task, {})
    loaded = task.load(model, settings)
    trained = json.loads((model / "config.json").read_text()).get("id2label")
    if task.labels and trained and list(trained.values()) != task.labels:
        raise ConfigError(
            f"model: {str(model)!r} has labels {list(trained.values())}, the task {task.labels}"
        )
    rows = task.split("train").take(range(1))
    return score_rows(task.objective(loaded, settings, rows), model, task, settings, split)


def score_rows(
    objective: TaskObjective, tokenizer_folder: Path, task: Task, config: FinetuneConfig, split: str = "test"
) -> dict[str, Any]:
    """Scores on a split; for a classifier, with the confusion matrix."""
    chosen = task.split(split)
    batches = task.batches(chosen, task.tokenizer_of(tokenizer_folder), batch_size=64)
    predictions = predict(objective, batches, Worker(), batch_size=64, precision=config.precision)
    scores: dict[str, Any] = dict(task.scores(chosen, predictions.rows, batches))
    if isinstance(task, Classification):
        predicted = np.stack(predictions.rows).argmax(-1)
        scores |= classification_scores(task.label_array(chosen), predicted, len(task.labels))
    return scores | {"texts": len(chosen), "labels": task.labels, "primary": task.primary}


def train_and_score(job: FinetuningJob, threads: int) -> dict[str, Any]:
    """Fine-tune in this process, with this many threads, and score on the held-out rows."""
    torch.set_num_threads(threads)
    objective = job.objective()
    Trainer(objective, job.batches()[0], job.config, worker=Worker()).run()
    return score_rows(objective, job.model_folder, job.task, job.config)


def finetune_settings(encoder: Path, task: Task, settings: dict[str, Any]) -> FinetuneConfig:
    """Settings of a fine-tuning of this encoder on this task."""
    full = settings | {"model": str(encoder), "task": str(task.folder)}
    return validate(FinetuneConfig, full, "finetune")
