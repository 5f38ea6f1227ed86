"""The step `finetune`: trains an encoder on a task."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import Any

from headway.config.finetune import FinetuneConfig, check_task
from headway.config.tasks import ClassificationTask
from headway.data.atomic import atomic_folder, write_atomically
from headway.engine.training.trainer import Metrics
from headway.runs.class_counts import tell_class_counts
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.held_out import score_models
from headway.runs.journal import Entry, first_value
from headway.runs.lineage.data_splits import task_splits
from headway.runs.repeats import spreads, train_variants
from headway.runs.teaching import taught_job
from headway.runs.training import chosen_entry, chosen_metrics, run_job, tracked
from headway.tasks.task import Task
from headway.tracking import Run
from headway.tracking.data_split import DataSplit
from headway.tracking.logged_models import Scores, log_reference
from headway.tracking.references import model_folder


def run_finetune(config: FinetuneConfig, context: Context) -> StepResult:
    """Fine-tune an encoder and save it in transformers' format.

    With `seeds`, trains once with each of that many consecutive seeds, and keeps the model that is best on
    the validation rows. With `folds`, also scores by cross-validation. With a `test_source` or `test_split`
    of the task, scores the model on it once, at the end.
    """
    if config.workers:
        # Checked before anything is written: a run that cannot start leaves no trace.
        context.join_cluster(config.min_workers)
    model = model_folder(config.model, context.tracking).resolve()
    few = config.task.labels_per_class if isinstance(config.task, ClassificationTask) else None
    job = FinetuningJob(config, model, task_folder(config.task, model, context), few)
    check_task(config, job.task.kind)
    job = taught_job(job, context)
    summary: dict[str, Any] = {}
    data = task_splits(job.task)
    with tracked(config, context, list(data.values())) as run:
        tell_class_counts(job.splits, context, run)
        if config.folds is not None:
            summary["cross_validation"] = _across_folds(job, config.folds, context, run)
        if config.seeds > 1:
            entries, summary["seeds"] = _across_seeds(job, config.seeds, context, run)
        else:
            entries = run_job(job, context, run, context.step)
        run.log_metrics([(0, _means(summary))])
        chosen = chosen_entry(entries, config)
        scores = [Scores(chosen.metrics, data["validation"], chosen.step, chosen.time)]
        if _has_test_rows(config):
            summary["test"] = _test(job.task, context)
            test = {f"test_{name}": value for name, value in summary["test"].items()}
            scores.append(Scores(test, data["test"]))
        settings = config.model_dump(mode="json")
        log_reference(run, context.step, context.folder / "model", job.task.kind, settings, scores)
    summary |= {"validation_loss_start": first_value(entries, "validation_loss"), **chosen.metrics}
    summary |= {"primary": job.task.primary, "mlflow_run_id": run.run_id}
    shutil.rmtree(context.folder / "best", ignore_errors=True)
    primary = job.task.primary
    headline = f"validation {_said(primary, summary)}, loss {summary['validation_loss']:.4f}"
    if "test" in summary:
        headline += f"; test {primary.replace('_', ' ')} {summary['test'][primary]:.4f}"
    return StepResult(str(context.folder / "model"), headline, summary=summary)


def _across_seeds(
    job: FinetuningJob, seeds: int, context: Context, run: Run
) -> tuple[list[Entry], dict[str, Any]]:
    """Train with consecutive seeds; the best model on the validation rows becomes the step's."""
    first = job.config.seed
    jobs = {
        f"seed-{seed}": replace(job, config=_variant(job.config, seed=seed))
        for seed in range(first, first + seeds)
    }
    entries = train_variants(jobs, context, run, _rows_read(job))
    measured = {name: chosen_metrics(found, job.config) for name, found in entries.items()}

    def score(name: str) -> float:
        value = measured[name][f"validation_{job.task.primary}"]
        return -math.inf if math.isnan(value) else value

    best = max(measured, key=score)
    target = context.folder / "model"
    if not target.is_dir():
        with atomic_folder(target) as draft:
            shutil.copytree(context.folder / "variants" / best / "model", draft, dirs_exist_ok=True)
    return entries[best], {"best": best, **spreads(list(measured.values()))}


def _across_folds(job: FinetuningJob, folds: int, context: Context, run: Run) -> dict[str, Any]:
    """Scores by cross-validation; the models are not kept."""
    config = _variant(job.config, seed=job.config.seed)
    jobs = {f"fold-{n}": replace(job, config=config, fold=(n, folds)) for n in range(folds)}
    _ = jobs["fold-0"].rows  # refuses more folds than there are groups of rows, before workers start
    entries = train_variants(jobs, context, run, _rows_read(job))
    return {"folds": folds, **spreads([chosen_metrics(measured, config) for measured in entries.values()])}


def _rows_read(job: FinetuningJob) -> list[DataSplit]:
    """What each seed and fold trains on and chooses by."""
    data = task_splits(job.task)
    return [data["train"], data["validation"]]


def _has_test_rows(config: FinetuneConfig) -> bool:
    """Whether the user named rows to test on, besides those that are held out for `evaluate`."""
    task = config.task
    return not isinstance(task, str) and (task.test_source is not None or task.test_split is not None)


def _test(task: Task, context: Context) -> dict[str, float]:
    """Scores of the step's model on the test rows, measured only once."""
    path = context.folder / "test.json"
    if path.is_file():
        earlier: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return earlier
    [scores] = score_models([context.folder / "model"], [task], context)
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    write_atomically(path, json.dumps(numbers))
    return numbers


def _variant(config: FinetuneConfig, seed: int) -> FinetuneConfig:
    """The settings of one of several runs, each in one process."""
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
    """The primary score in words, with its spread if there are several runs."""
    name = primary.replace("_", " ")
    text = f"{name} {summary[f'validation_{primary}']:.4f}"
    for group, what in (("seeds", "seeds"), ("cross_validation", "folds")):
        if group in summary:
            row = summary[group][f"validation_{primary}"]
            text += f" ({row['mean']:.4f} ± {row['std']:.4f} over {len(row['values'])} {what})"
    return text
