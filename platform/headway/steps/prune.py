"""The step `prune`: cuts an encoder down to some of its layers, heads and neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from headway.compress.prune import prune
from headway.compress.smaller_folder import check_sentence_modules, write_smaller
from headway.config.compression.prune import PruneConfig
from headway.data.atomic import atomic_folder
from headway.data.sampling import random_generator
from headway.engine.model.encoder import load_as_saved
from headway.engine.parallel.worker import Worker
from headway.engine.pruning.cut import sizes_of
from headway.engine.training.objectives import TaskObjective
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import score, task_folder
from headway.runs.held_out import finetune_settings
from headway.runs.lineage.data_splits import task_splits
from headway.runs.lineage.step_run import add_models, step_run
from headway.runs.teaching import fine_tuned
from headway.tasks.task import Task, open_task
from headway.tracking.logged_models import log_reference
from headway.tracking.references import model_folder

_BATCH_SIZE = 32


def run_prune(config: PruneConfig, context: Context) -> StepResult:
    """Write a smaller model of the same kind, in transformers' format, for `finetune` to train further.

    With a task, it also says how well the model does on the validation rows before and after.

    Raises:
        ConfigError: the encoder cannot be pruned, has fewer parts than should stay, or was not fine-tuned
            on the task.
    """
    original = model_folder(config.model, context.tracking).resolve()
    judge = _Judge.of(config, original, context) if config.task is not None else None
    model = load_as_saved(original) if judge is None else judge.objective.model
    before = sizes_of(model)
    wanted = before.shrunk(config.heads, config.neurons)
    check_sentence_modules(original, before.hidden, wanted.hidden)
    weights = model.num_parameters()
    summary: dict[str, Any] = {}
    if judge is None:
        smaller = prune(model, config)
    else:
        summary |= judge.score(model, "validation")
        smaller = prune(model, config, judge.objective, judge.sample(config))
        summary |= judge.score(smaller, "pruned_validation")
    target = context.folder / "model"
    with atomic_folder(target) as draft:
        write_smaller(smaller, original, draft)
    after = sizes_of(smaller)
    summary |= {"weights": weights, "pruned_weights": smaller.num_parameters()}
    _record(config, context, judge, original, summary)
    summary |= {"sizes": before._asdict(), "pruned_sizes": after._asdict()}
    return StepResult(str(target), _headline(summary, judge), summary=summary)


def _record(
    config: PruneConfig, context: Context, judge: _Judge | None, original: Path, summary: dict[str, Any]
) -> None:
    """Leave a run in MLflow with what was cut, what it was judged by, and the smaller model."""
    data = [] if judge is None else list(task_splits(judge.task).values())
    with step_run(config, context, data) as run:
        run.log_metrics([(0, {name: float(value) for name, value in summary.items()})])
        add_models(run, context, [(config.model, original)])
        log_reference(run, context.step, context.folder / "model", "prune", config.model_dump(mode="json"))


class _Judge:
    """A task, and the model that was fine-tuned on it.

    Attributes:
        task: prepared with the model's tokenizer.
        objective: around the model.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self._folder = folder
        self._settings = finetune_settings(folder, task, {"precision": "fp32"})
        self.objective = fine_tuned(folder, task, self._settings)

    @classmethod
    def of(cls, config: PruneConfig, folder: Path, context: Context) -> _Judge:
        """The task that the settings name, with the model in a folder."""
        return cls(open_task(task_folder(config.task, folder, context)), folder)

    def _around(self, model: PreTrainedModel) -> TaskObjective:
        rows = self.task.split("train").take(range(1))
        return self.task.objective(model, self._settings, rows)

    def sample(self, config: PruneConfig) -> list[Any]:
        """Batches of some training rows, chosen at random."""
        rows = self.task.trained_on(self.task.split("train"))
        chosen = random_generator(config.seed).permutation(len(rows))[: config.samples]
        return list(self._batches(rows.take(sorted(chosen.tolist()))).in_order(0, 1, _BATCH_SIZE))

    def _batches(self, rows: Any) -> Any:
        return self.task.batches(rows, self.task.tokenizer_of(self._folder), batch_size=_BATCH_SIZE)

    def score(self, model: PreTrainedModel, prefix: str) -> dict[str, float]:
        """The loss and the primary score of a model on the validation rows."""
        rows = self.task.split("validation")
        scores = score(self._around(model), self.task, rows, self._batches(rows), Worker(), self._settings)
        return {f"{prefix}_{name}": scores[name] for name in ("loss", self.task.primary)}


def _headline(summary: dict[str, Any], judge: _Judge | None) -> str:
    sizes = [
        f"{name} {count}" if count == left else f"{name} {count} → {left}"
        for (name, count), left in zip(
            summary["sizes"].items(), summary["pruned_sizes"].values(), strict=True
        )
    ]
    weights = f"{summary['weights'] / 1e6:.1f} → {summary['pruned_weights'] / 1e6:.1f} million weights"
    headline = f"{', '.join(sizes)}; {weights}"
    if judge is not None:
        primary = judge.task.primary
        values = (summary[f"{prefix}_{primary}"] for prefix in ("validation", "pruned_validation"))
        headline += f"; validation {primary.replace('_', ' ')} " + " → ".join(f"{v:.4f}" for v in values)
        headline += " before it is trained further"
    return headline
