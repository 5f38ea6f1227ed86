"""Fine-tuning as a job for the training loop: model, rows, scores and what is saved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.batches import BatchSource, DealtBatches
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.sampling import BatchSizes
from headway.data.teacher_outputs import TaughtBatches
from headway.engine.distillation.imitation import Distillation
from headway.engine.distillation.teacher import Teacher
from headway.engine.formats.fake_quantize import round_in_training
from headway.engine.model.encoder import load_as_saved
from headway.engine.model.lora import add_lora, freeze_layers, keep_layers, merged
from headway.engine.model.unpadded import encoder_layers
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import TaskObjective
from headway.engine.training.scoring import predict
from headway.engine.training.trainer import Evaluator, Metrics
from headway.runs.context import Context
from headway.tasks.preparation import prepared
from headway.tasks.rows import Rows
from headway.tasks.task import Task, open_task

SETTINGS_FILE = "headway_finetune.json"
"""Name of the file beside a fine-tuned model's weights, with the settings that it was trained with."""


@dataclass(frozen=True)
class FinetuningJob:
    """Fine-tuning of the encoder in `model_folder` on a prepared task.

    Attributes:
        labels_per_class: train on this many rows of each label; on all if None.
        fold: (index, folds): validate on one fold of all rows that are not held out, and train on the others.
        teacher: the folder of the model to learn from, if the settings name one.
        teacher_outputs: the folder of what it says to the rows, if outputs are learnt.
    """

    config: FinetuneConfig
    model_folder: Path
    task_folder: Path
    labels_per_class: int | None = None
    fold: tuple[int, int] | None = None
    teacher: Path | None = None
    teacher_outputs: Path | None = None

    @cached_property
    def task(self) -> Task:
        """The prepared task."""
        return open_task(self.task_folder)

    @cached_property
    def rows(self) -> tuple[Rows, Rows]:
        """Training and validation rows."""
        train, validation = self.task.split("train"), self.task.split("validation")
        if self.fold is not None:
            train, validation = train.joined(validation).fold(*self.fold, self.config.seed)
        if self.labels_per_class is not None:
            train = train.few(self.labels_per_class, self.config.seed)
        return self.task.trained_on(train), validation

    @property
    def splits(self) -> dict[str, Rows]:
        """The rows that are trained on, chosen by and held out, by the names of their splits."""
        train, validation = self.rows
        return {"train": train, "validation": validation, "test": self.task.split("test")}

    def __getstate__(self) -> dict[str, Any]:
        # Rows are not pickled: every process maps them from disk.
        return {name: value for name, value in vars(self).items() if name not in ("task", "rows")}

    def objective(self) -> TaskObjective:
        """See `TrainingJob`."""
        config = self.config
        model = self.task.load(self.model_folder, config)
        keep_layers(model, config.layers)
        freeze_layers(model, config.frozen_layers)
        if config.lora is not None:
            add_lora(model, config.lora)
        if config.quantize_aware is not None:
            round_in_training(model, encoder_layers(model), config.quantize_aware)
        objective = self.task.objective(model, config, self.rows[0])
        if config.distill is not None:
            if self.teacher is None:
                raise ConfigError("distill: only the steps finetune and sweep learn from a teacher")
            teacher = Teacher(load_as_saved(self.teacher)) if config.distill.looks_inside else None
            objective.distillation = Distillation(config.distill, objective.output_kind, model, teacher)
        return objective

    def batches(self) -> tuple[BatchSource, BatchSource]:
        """See `TrainingJob`."""
        train, validation = (self.batches_of(rows) for rows in self.rows)
        config = self.config
        train.batch_sizes = BatchSizes.of_run(
            config.batch_size, config.batch_warmup, config.total_steps(train)
        )
        if self.teacher_outputs is None:
            return train, validation
        keys = self.task.row_keys(self.rows[0], train)
        return TaughtBatches(train, self.teacher_outputs, keys), validation

    def batches_of(self, rows: Rows) -> DealtBatches:
        """Some rows as batches."""
        tokenizer = self.task.tokenizer_of(self.model_folder)
        size, seed = self.config.batch_size, self.config.seed
        batches = self.task.batches(rows, tokenizer, batch_size=size, seed=seed)
        batches.batch_tokens = self.config.batch_tokens
        return batches

    def evaluator(self, worker: Worker) -> Evaluator:
        """See `TrainingJob`; measures the task's scores beside the loss."""
        validation = self.rows[1]
        batches = self.batches_of(validation)

        def evaluate(objective: TaskObjective) -> Metrics:
            scores = score(objective, self.task, validation, batches, worker, self.config)
            return {f"validation_{name}": value for name, value in scores.items()}

        return evaluate

    def save(self, objective: Any, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer is saved with the model."""
        self.task.save(merged(objective.model), self.model_folder, folder)
        (folder / SETTINGS_FILE).write_text(
            self.config.model_dump_json(indent=2, exclude={"model", "task", "distill"})
        )


def score(
    objective: TaskObjective,
    task: Task,
    rows: Rows,
    batches: BatchSource,
    worker: Worker,
    config: FinetuneConfig,
) -> Metrics:
    """Loss and scores of a model on some rows; `batches` are made of them."""
    predictions = predict(
        objective, batches, worker, batch_size=config.batch_size, precision=config.precision
    )
    return {"loss": predictions.loss} | task.scores(rows, predictions.rows, batches)


def task_folder(task: Any, model: Path, context: Context) -> Path:
    """The folder of a prepared task; settings of a task are prepared with the model's tokenizer first."""
    if isinstance(task, str):
        return open_task(Path(task).expanduser()).folder.resolve()
    return prepared(task, load_tokenizer(model), context.stores / "tasks").folder.resolve()
