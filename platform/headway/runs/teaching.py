"""A teacher's outputs for the rows of a task: computed once, where models are trained, and stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.atomic import atomic_folder
from headway.data.contents import Contents
from headway.data.corpus.tokenizer import load_tokenizer, vocabulary_digest
from headway.data.teacher_outputs import write_teacher_outputs
from headway.engine.model.encoder import NEW_WEIGHTS
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import TaskObjective
from headway.engine.training.scoring import predict
from headway.inference.sentence_modules import NormalizeModule, read_sentence_modules
from headway.runs.context import Context
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.held_out import finetune_settings
from headway.tasks.embeddings import Embeddings
from headway.tasks.task import Task, open_task
from headway.tracking.references import model_folder

_BATCH_SIZE = 64
_MADE_OF_THE_REST = ["golden.json"]


def taught_job(job: FinetuningJob, context: Context) -> FinetuningJob:
    """A job with the teacher that its settings name, and its outputs; itself if they name none.

    Raises:
        ConfigError: the teacher was not fine-tuned on this task, or its tokens are not the student's where
            they must be.
    """
    distill = job.config.distill
    if distill is None:
        return job
    teacher = model_folder(distill.teacher, context.tracking).resolve()
    if distill.looks_inside:
        _check_same_tokens(teacher, job.model_folder)
    outputs = teacher_outputs(teacher, job, context) if distill.logits else None
    return replace(job, teacher=teacher, teacher_outputs=outputs)


def teacher_outputs(teacher: Path, job: FinetuningJob, context: Context) -> Path:
    """The folder of a teacher's outputs for all rows of a task that are not held out.

    A teacher with other tokens than the student reads the same texts with its own.
    """
    task = job.task
    if not isinstance(job.config.task, str):
        task = open_task(task_folder(job.config.task, teacher, context))
    about = {
        "task": task.folder.name,
        "teacher": Contents(context.root / "contents.json", _MADE_OF_THE_REST).of(teacher),
    }
    name = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=10).hexdigest()
    folder = context.stores / "teachers" / name
    if not folder.is_dir():
        context.display.step(context.step, f"computing what {str(teacher)!r} says to the task's rows")
        keys, rows = context.compute(_outputs, teacher, task.folder.resolve(), job.model_folder)
        with atomic_folder(folder) as draft:
            write_teacher_outputs(draft, keys, rows)
    return folder.resolve()


def _outputs(
    teacher: Path, task_folder: Path, student: Path, threads: int | None
) -> tuple[list[str], list[np.ndarray]]:
    """Keys of all rows, and the teacher's outputs."""
    if threads is not None:
        torch.set_num_threads(threads)
    task = open_task(task_folder)
    config = finetune_settings(teacher, task, {})
    objective = fine_tuned(teacher, task, config)
    if objective.unit != "sequence":
        _check_same_tokens(teacher, student)
    # Folds mix both splits.
    rows = task.split("train").joined(task.split("validation"))
    batches = task.batches(rows, task.tokenizer_of(teacher), batch_size=_BATCH_SIZE)
    found = predict(objective, batches, Worker(), batch_size=_BATCH_SIZE, precision=config.precision).rows
    if objective.unit == "sequence" and batches.sequences_a_row == 1:
        found = [np.asarray(row)[None] for row in found]
    return task.row_keys(rows, batches), found


def fine_tuned(folder: Path, task: Task, config: FinetuneConfig) -> TaskObjective:
    """The loss of a task around a model that was fine-tuned on it.

    Raises:
        ConfigError: it has no head for the task, or one for other labels.
    """
    model = task.load(folder, config)
    # Vectors of texts are means of hidden states, so BERT's pooler has no part in them.
    missing = [name for name in getattr(model, NEW_WEIGHTS) if "pooler." not in name]
    trained = json.loads((folder / "config.json").read_text()).get("id2label")
    if missing or (task.labels and trained and list(trained.values()) != task.labels):
        raise ConfigError(
            f"model: {str(folder)!r} has no head for {task.kind} with the task's labels; fine-tune it first"
        )
    if isinstance(task, Embeddings):
        _check_vectors(folder)
    return task.objective(model, config, task.split("train").take(range(1)))


def _check_vectors(folder: Path) -> None:
    """Refuse a model whose vectors are not those that training computes: means of hidden states."""
    modules = read_sentence_modules(folder)
    others = [type(module) for module in modules.vector_modules if not isinstance(module, NormalizeModule)]
    if modules.poolings != ("mean",) or others:
        raise ConfigError(
            f"model: {str(folder)!r} makes its vectors by more than the mean of its tokens; allowed: the mean"
        )


def _check_same_tokens(teacher: Path, student: Path) -> None:
    """Refuse a teacher of whose tokens something is learnt, if they are not the student's."""
    digests = {vocabulary_digest(load_tokenizer(folder)) for folder in (teacher, student)}
    if len(digests) > 1:
        raise ConfigError(
            f"distill.teacher: {str(teacher)!r} has other tokens than the student, which learns about each"
        )
