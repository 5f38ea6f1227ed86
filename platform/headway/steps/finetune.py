"""The step `finetune`: an encoder learns a task."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from headway import training_group
from headway.config import ClassificationTask, FinetuneConfig
from headway.data.batches import BatchSource
from headway.data.tokenizer import load_tokenizer
from headway.engine.adaptation import add_lora, freeze_layers, keep_layers, merged
from headway.engine.objectives import TaskObjective
from headway.engine.parallel import Worker
from headway.engine.scoring import predict
from headway.engine.trainer import Evaluator, Metrics
from headway.model_folder import model_folder
from headway.steps.context import Context, StepResult
from headway.steps.journal import Entry
from headway.steps.repeats import spreads, train_variants
from headway.steps.training import chosen_metrics, first_value, run_job, tracked
from headway.tasks.preparation import prepared
from headway.tasks.task import Rows, Task, open_task
from headway.tracking import Run

SETTINGS_FILE = "headway_finetune.json"
"""Beside a fine-tuned model's weights: the settings it was trained with."""


@dataclass(frozen=True)
class FinetuningJob:
    """Fine-tuning of the encoder in `model_folder` on a prepared task.

    Attributes:
        labels_per_class: train on so many rows of each label.
        fold: validate on this one of so many parts of all rows but the held-out ones, and train on the rest.
    """

    config: FinetuneConfig
    model_folder: Path
    task_folder: Path
    labels_per_class: int | None = None
    fold: tuple[int, int] | None = None

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

    def __getstate__(self) -> dict[str, Any]:
        # The rows do not travel: every process maps them from disk.
        return {name: value for name, value in vars(self).items() if name not in ("task", "rows")}

    def objective(self) -> TaskObjective:
        """See `TrainingJob`."""
        config = self.config
        model = self.task.load(self.model_folder, config)
        keep_layers(model, config.layers)
        freeze_layers(model, config.frozen_layers)
        if config.lora is not None:
            add_lora(model, config.lora)
        return self.task.objective(model, config, self.rows[0])

    def batches(self) -> tuple[BatchSource, BatchSource]:
        """See `TrainingJob`."""
        train, validation = self.rows
        return self.batches_of(train), self.batches_of(validation)

    def batches_of(self, rows: Rows) -> BatchSource:
        """Some rows as batches."""
        tokenizer = load_tokenizer(self.model_folder)
        return self.task.batches(rows, tokenizer, batch_size=self.config.batch_size, seed=self.config.seed)

    def evaluator(self, worker: Worker) -> Evaluator:
        """See `TrainingJob`; the task's scores go with the loss."""
        validation = self.rows[1]
        batches = self.batches_of(validation)

        def evaluate(objective: TaskObjective) -> Metrics:
            scores = score(objective, self.task, validation, batches, worker, self.config)
            return {f"validation_{name}": value for name, value in scores.items()}

        return evaluate

    def save(self, objective: Any, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer goes with the model."""
        self.task.save(merged(objective.model), self.model_folder, folder)
        (folder / SETTINGS_FILE).write_text(self.config.model_dump_json(indent=2, exclude={"model", "task"}))


def score(
    objective: TaskObjective,
    task: Task,
    rows: Rows,
    batches: BatchSource,
    worker: Worker,
    config: FinetuneConfig,
) -> Metrics:
    """Loss and scores of a model on some rows; `batches` are made of them."""
    found = predict(objective, batches, worker, batch_size=config.batch_size, precision=config.precision)
    return {"loss": found.loss} | task.scores(rows, found.rows, batches)


def task_folder(task: Any, model: Path, context: Context) -> Path:
    """The folder of a prepared task, which is prepared for the model's tokenizer if need be."""
    if isinstance(task, str):
        return open_task(Path(task).expanduser()).folder.resolve()
    return prepared(task, load_tokenizer(model), context.stores / "tasks").folder.resolve()


def run_finetune(config: FinetuneConfig, context: Context) -> StepResult:
    """Fine-tune an encoder and save it in transformers' format.

    With `seeds`, runs from that many consecutive seeds, one after the other; the best on the validation
    rows is kept. With `folds`, scores by cross-validation besides.
    """
    if config.workers:
        # Before anything is written: a run that cannot start leaves no trace.
        training_group.require_workers(config.workers, context.address, context.tracking.uri)
    model = model_folder(config.model, context.tracking).resolve()
    few = config.task.labels_per_class if isinstance(config.task, ClassificationTask) else None
    job = FinetuningJob(config, model, task_folder(config.task, model, context), few)
    summary: dict[str, Any] = {}
    with tracked(config, context) as run:
        if config.folds is not None:
            summary["cross_validation"] = _across_folds(job, config.folds, context, run)
        if config.seeds > 1:
            entries, summary["seeds"] = _across_seeds(job, config.seeds, context, run)
        else:
            entries = run_job(job, context, run, context.step)
        run.log_metrics([(0, _means(summary))])
    chosen = chosen_metrics(entries, config)
    summary |= {"validation_loss_start": first_value(entries, "validation_loss"), **chosen}
    summary |= {"primary": job.task.primary, "mlflow_run_id": run.run_id}
    shutil.rmtree(context.folder / "best", ignore_errors=True)
    headline = f"validation {_said(job.task.primary, summary)}, loss {summary['validation_loss']:.4f}"
    return StepResult(str(context.folder / "model"), headline, summary=summary)


def _across_seeds(
    job: FinetuningJob, seeds: int, context: Context, run: Run
) -> tuple[list[Entry], dict[str, Any]]:
    """Train from consecutive seeds; the model that is best on the validation rows becomes the step's."""
    first = job.config.seed
    jobs = {
        f"seed-{seed}": replace(job, config=_variant(job.config, seed=seed))
        for seed in range(first, first + seeds)
    }
    entries = train_variants(jobs, context, run)
    measured = {name: chosen_metrics(found, job.config) for name, found in entries.items()}
    best = max(measured, key=lambda name: measured[name][f"validation_{job.task.primary}"])
    target = context.folder / "model"
    if not target.is_dir():
        shutil.copytree(context.folder / "variants" / best / "model", target)
    return entries[best], {"best": best, **spreads(list(measured.values()))}


def _across_folds(job: FinetuningJob, folds: int, context: Context, run: Run) -> dict[str, Any]:
    """Scores by cross-validation; its models are thrown away."""
    config = _variant(job.config, seed=job.config.seed)
    jobs = {f"fold-{n}": replace(job, config=config, fold=(n, folds)) for n in range(folds)}
    entries = train_variants(jobs, context, run)
    return {"folds": folds, **spreads([chosen_metrics(found, config) for found in entries.values()])}


def _variant(config: FinetuneConfig, seed: int) -> FinetuneConfig:
    """One run among several: in one process."""
    return config.model_copy(update={"seed": seed, "seeds": 1, "folds": None, "workers": 0})


def _means(summary: dict[str, Any]) -> Metrics:
    return {
        f"{group}_{name}_{part}": row[part]
        for group, rows in summary.items()
        for name, row in rows.items()
        if isinstance(row, dict)
        for part in ("mean", "std")
    }


def _said(primary: str, summary: dict[str, Any]) -> str:
    """The primary score in words, with its spread where there is one."""
    name = primary.replace("_", " ")
    text = f"{name} {summary[f'validation_{primary}']:.4f}"
    for group, what in (("seeds", "seeds"), ("cross_validation", "folds")):
        if group in summary:
            row = summary[group][f"validation_{primary}"]
            text += f" ({row['mean']:.4f} ± {row['std']:.4f} over {len(row['values'])} {what})"
    return text
