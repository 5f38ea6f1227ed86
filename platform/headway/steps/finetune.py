"""The step `finetune`: an encoder learns a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headway.config import ClassificationTask, FinetuneConfig
from headway.data.batches import LabelledBatches
from headway.data.tokenizer import load_tokenizer
from headway.engine.encoder import load_classifier, save_model
from headway.engine.objectives import ClassificationObjective
from headway.steps.context import Context, StepResult
from headway.steps.models import model_folder
from headway.steps.training import first_value, last_value, run_job
from headway.tasks.classification import LabelledTexts, PreparedTask, open_task, prepare_task, read_task

SETTINGS_FILE = "headway_finetune.json"
"""Beside a fine-tuned model's weights: the settings it was trained with."""


@dataclass(frozen=True)
class FinetuningJob:
    """Fine-tuning of the encoder in `model_folder` on a prepared task."""

    config: FinetuneConfig
    model_folder: Path
    task_folder: Path
    labels_per_class: int | None = None

    def objective(self) -> nn.Module:
        """See `TrainingJob`."""
        labels = PreparedTask(self.task_folder).labels
        config = self.config
        model = load_classifier(
            self.model_folder, labels, random_weights=config.random_weights, seed=config.seed
        )
        return ClassificationObjective(model)

    def batches(self) -> tuple[LabelledBatches, LabelledBatches]:
        """See `TrainingJob`."""
        task = PreparedTask(self.task_folder)
        train = task.split("train")
        if self.labels_per_class is not None:
            train = train.few(self.labels_per_class, self.config.seed)
        return self._batches(task, train), self._batches(task, task.split("validation"))

    def _batches(self, task: PreparedTask, texts: LabelledTexts) -> LabelledBatches:
        return texts.batches(
            load_tokenizer(self.model_folder),
            max_length=task.max_length,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
        )

    def save(self, objective: nn.Module, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer goes with the model."""
        assert isinstance(objective, ClassificationObjective)
        save_model(objective.model, folder)
        load_tokenizer(self.model_folder).save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(self.config.model_dump_json(indent=2, exclude={"model", "task"}))


def task_folder(task: str | ClassificationTask, model: Path, context: Context) -> Path:
    """The folder of a prepared task, which is prepared for the model's tokenizer if need be."""
    if isinstance(task, str):
        return open_task(Path(task).expanduser()).folder.resolve()
    splits = read_task(task)
    stores = context.stores / "tasks"
    return prepare_task(splits, load_tokenizer(model), task.max_length, stores).folder.resolve()


def run_finetune(config: FinetuneConfig, context: Context) -> StepResult:
    """Fine-tune an encoder and save it in transformers' format."""
    model = model_folder(config.model, context.tracking).resolve()
    few = config.task.labels_per_class if isinstance(config.task, ClassificationTask) else None
    job = FinetuningJob(config, model, task_folder(config.task, model, context), few)
    with context.tracking.run(context.experiment, context.step, config.model_dump(mode="json")) as run:
        entries = run_job(job, context, run, context.step)
    summary = {
        "validation_loss_start": first_value(entries, "validation_loss"),
        "validation_loss": last_value(entries, "validation_loss"),
        "validation_accuracy": last_value(entries, "validation_classification_accuracy"),
        "mlflow_run_id": run.run_id,
    }
    headline = (
        f"validation accuracy {summary['validation_accuracy']:.4f}, loss {summary['validation_loss']:.4f}"
    )
    return StepResult(str(context.folder / "model"), headline, summary=summary)
