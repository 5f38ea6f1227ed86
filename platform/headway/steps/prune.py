"""The step `prune`: cuts an encoder down to some of its layers, heads, neurons and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.compress.judge import Judge
from headway.compress.prune import prune
from headway.compress.smaller_folder import check_sentence_modules, write_smaller
from headway.config.compression.prune import PruneConfig
from headway.data.atomic import atomic_folder
from headway.engine.model.encoder import load_as_saved
from headway.engine.pruning.cut import sizes_of
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import task_folder
from headway.runs.lineage.data_splits import task_splits
from headway.runs.lineage.step_run import add_models, step_run
from headway.tasks.task import open_task
from headway.tracking.logged_models import log_reference
from headway.tracking.references import model_folder


def run_prune(config: PruneConfig, context: Context) -> StepResult:
    """Write a smaller model of the same kind, in transformers' format, for `finetune` to train further.

    With a task, it also says how well the model does on the validation rows before and after.

    Raises:
        ConfigError: the encoder cannot be pruned, has fewer parts than should stay, or was not fine-tuned
            on the task.
    """
    original = model_folder(config.model, context.tracking).resolve()
    judge = _judge(config, original, context)
    objective = None if judge is None else judge.objective(original)
    model = load_as_saved(original) if objective is None else objective.model
    before = sizes_of(model)
    wanted = before.shrunk(config.heads, config.neurons)
    check_sentence_modules(original, before.hidden, wanted.hidden)
    weights = model.num_parameters()
    summary: dict[str, Any] = {}
    if judge is None:
        smaller = prune(model, config)
    else:
        summary |= judge.score(model, "validation")
        smaller = prune(model, config, objective, judge.sample(config.samples, config.seed))
        if config.vocabulary is not None:
            judge = judge.with_vocabulary(smaller, config.vocabulary, context.stores / "tasks")
        summary |= judge.score(smaller, "pruned_validation")
    target = context.folder / "model"
    with atomic_folder(target) as draft:
        write_smaller(smaller, original, draft, None if judge is None else judge.tokenizer)
    after = sizes_of(smaller)
    summary |= {"weights": weights, "pruned_weights": smaller.num_parameters()}
    _record(config, context, judge, original, summary)
    summary |= {"sizes": before._asdict(), "pruned_sizes": after._asdict()}
    return StepResult(str(target), _headline(summary, judge), summary=summary)


def _judge(config: PruneConfig, original: Path, context: Context) -> Judge | None:
    """The task that the settings name, as the original reads it."""
    if config.task is None:
        return None
    return Judge.of(open_task(task_folder(config.task, original, context)), original)


def _record(
    config: PruneConfig, context: Context, judge: Judge | None, original: Path, summary: dict[str, Any]
) -> None:
    """Leave a run in MLflow with what was cut, what it was judged by, and the smaller model."""
    data = [] if judge is None else list(task_splits(judge.task).values())
    with step_run(config, context, data) as run:
        run.log_metrics([(0, {name: float(value) for name, value in summary.items()})])
        add_models(run, context, [(config.model, original)])
        log_reference(run, context.step, context.folder / "model", "prune", config.model_dump(mode="json"))


def _headline(summary: dict[str, Any], judge: Judge | None) -> str:
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
