"""The step `evaluate`: scores a model on held-out rows, beside baselines that lack its pretraining."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from headway.cluster import connect
from headway.cluster.worker_group import call_resources
from headway.config.evaluate import EvaluateConfig
from headway.runs.class_counts import tell_class_counts
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import SETTINGS_FILE, FinetuningJob, task_folder
from headway.runs.held_out import finetune_settings, score_models, train_and_score
from headway.runs.learning_curve import draw_learning_curve
from headway.runs.lineage.data_splits import task_splits
from headway.runs.lineage.step_run import step_run
from headway.runs.repeats import spread
from headway.tasks.classification import Classification, tfidf_baseline
from headway.tasks.task import Task, open_task
from headway.tracking.logged_models import Scores, log_scores
from headway.tracking.references import model_folder


class Baseline(StrEnum):
    """What a model is compared with, by its name in the summary."""

    RANDOM_INIT = "random_init"
    TFIDF = "tfidf"


_ROW_TITLES = {
    Baseline.RANDOM_INIT: "same encoder, random weights",
    Baseline.TFIDF: "TF-IDF + logistic regression",
}
_CURVE_TITLES = {"pretrained": "pretrained", Baseline.RANDOM_INIT: "random weights", Baseline.TFIDF: "TF-IDF"}


def run_evaluate(config: EvaluateConfig, context: Context) -> StepResult:
    """Score a fine-tuned model on the held-out rows; with `encoder`, its baselines too."""
    model = model_folder(config.model, context.tracking).resolve()
    models = [model, *(model_folder(other, context.tracking).resolve() for other in config.beside.values())]
    # The same rows for all, and each model reads them with its own tokenizer.
    tasks = [open_task(task_folder(config.task, one, context)) for one in models]
    data = task_splits(tasks[0])
    with step_run(config, context, list(data.values())) as run:
        summary, task, rows = _evaluated(config, model, models, tasks, context)
        splits = {"train": task.split("train"), "test": task.split("test")}
        tell_class_counts(splits, context, run)
        run.log_metrics([(0, _numbers(summary))])
        model_id = context.tracking.patient().logged_model(config.model, model)
        if model_id is not None:
            run.log_inputs([], [model_id])
            log_scores(run, model_id, [Scores(_held_out_scores(summary), data["test"])])
        run.log_dict(summary, "evaluation.json")
        if summary.get("few_labels"):
            unit = _unit_of_few(task)
            picture = draw_learning_curve(summary["few_labels"], task.primary, unit, context.folder)
            run.log_file(picture)
    _show(context, task, summary, rows)
    return StepResult(str(model), _headline(summary, task), summary=summary)


def _evaluated(
    config: EvaluateConfig, model: Path, models: list[Path], tasks: list[Task], context: Context
) -> tuple[dict[str, Any], Task, list[tuple[Any, ...]]]:
    """The summary, the task as the baselines read it, and the rows of the table."""
    task = tasks[0]
    summary, *scored = score_models(models, tasks, context)
    others = dict(zip(config.beside, scored, strict=True))
    rows = [_table_row("this model", summary)]
    rows += [_table_row(name, scores) for name, scores in others.items()]
    if others:
        summary["beside"] = {name: _numbers(scores) for name, scores in others.items()}
    if config.encoder is not None:
        encoder = model_folder(config.encoder, context.tracking).resolve()
        task = open_task(task_folder(config.task, encoder, context))
        baselines = _baselines(config, encoder, model, task, context)
        rows += [_table_row(_ROW_TITLES[kind], scores) for kind, scores in baselines.items()]
        summary |= {f"{task.primary}_{kind}": scores[task.primary] for kind, scores in baselines.items()}
        summary["few_labels"] = _few_labels(config, encoder, task, context)
    return summary, task, rows


def _baselines(
    config: EvaluateConfig, encoder: Path, model: Path, task: Task, context: Context
) -> dict[Baseline, dict[str, Any]]:
    """Random weights with the model's own settings and, for classification, TF-IDF; on all labels."""
    settings = config.finetune
    if (model / SETTINGS_FILE).is_file():
        settings = json.loads((model / SETTINGS_FILE).read_text())
    one_run = {"random_weights": True, "workers": 0, "seeds": 1, "folds": None}
    job = _job(encoder, task, settings | one_run)
    [random_init] = _run_all([job], context)
    baselines = {Baseline.RANDOM_INIT: random_init}
    if isinstance(task, Classification):
        baselines[Baseline.TFIDF] = tfidf_baseline(task, task.split("train"), task.split("test"))
    return baselines


def _few_labels(
    config: EvaluateConfig, encoder: Path, task: Task, context: Context
) -> dict[str, dict[str, Any]]:
    """The spread of the primary score by labels per class and kind of model, over the same seeds."""
    seeds = range(config.seeds)
    base = _job(encoder, task, config.finetune)
    jobs = [
        _variant(base, few, random_weights=random_weights, seed=seed)
        for few in config.few_labels
        for random_weights in (False, True)
        for seed in seeds
    ]
    scores = iter([scores[task.primary] for scores in _run_all(jobs, context)])
    result = {}
    for few in config.few_labels:
        pretrained = [next(scores) for _ in seeds]
        random_init = [next(scores) for _ in seeds]
        result[str(few)] = {"pretrained": _spread(pretrained), Baseline.RANDOM_INIT: _spread(random_init)}
        if isinstance(task, Classification):
            result[str(few)][Baseline.TFIDF] = _spread([_tfidf_score(task, few, seed) for seed in seeds])
    return result


def _unit_of_few(task: Task) -> str:
    """What a learning curve counts."""
    return "labels per class" if any(task.split("train").classes) else "rows"


def _variant(base: FinetuningJob, few: int, *, random_weights: bool, seed: int) -> FinetuningJob:
    config = base.config.model_copy(update={"random_weights": random_weights, "seed": seed})
    return replace(base, config=config, labels_per_class=few)


def _tfidf_score(task: Classification, few: int, seed: int) -> float:
    train = task.split("train").few(few, seed)
    return float(tfidf_baseline(task, train, task.split("test"))[task.primary])


def _job(encoder: Path, task: Task, settings: dict[str, Any]) -> FinetuningJob:
    return FinetuningJob(finetune_settings(encoder, task, settings), encoder, task.folder)


def _run_all(jobs: Sequence[FinetuningJob], context: Context) -> list[dict[str, Any]]:
    if not jobs:
        return []
    context.join_cluster()
    resources = call_resources(len(jobs))

    def progress(done: int) -> None:
        context.display.training(context.step, done, len(jobs), {})

    calls = [(job, resources.cpus) for job in jobs]
    results = connect.map_on_cluster(train_and_score, calls, resources.cpus, resources.gpus, progress)
    context.display.settle()
    return results


def _spread(values: list[float]) -> dict[str, Any]:
    mean_and_std = spread(values)
    return {"mean": mean_and_std["mean"], "std": mean_and_std["std"], "seeds": values}


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def _held_out_scores(summary: dict[str, Any]) -> dict[str, float]:
    """The model's own scores, under the names that other steps give them."""
    return {f"test_{name}": summary[name] for name in _scored(summary)}


def _headline(summary: dict[str, Any], task: Task) -> str:
    primary = task.primary
    headline = f"{primary.replace('_', ' ')} {summary[primary]:.4f} on {summary['texts']} held-out texts"
    baselines = [("random weights", f"{primary}_random_init"), ("TF-IDF", f"{primary}_tfidf")]
    said = [f"{name} {scores[primary]:.4f}" for name, scores in summary.get("beside", {}).items()]
    said += [f"{name} {summary[key]:.4f}" for name, key in baselines if key in summary]
    return headline + (f" ({', '.join(said)})" if said else "")


def _table_row(name: str, scores: dict[str, Any]) -> tuple[Any, ...]:
    return (name, *_numbers(scores).values())


def _show(context: Context, task: Task, summary: dict[str, Any], rows: list[tuple[Any, ...]]) -> None:
    display = context.display
    title = f"{summary['texts']} held-out texts, all {task.facts['texts']['train']} training labels"
    names = [name.replace("macro_f1", "macro-F1") for name in _scored(summary)]
    display.table(title, ["", *names], rows)
    if summary.get("few_labels"):
        few = [
            (f"{labels} {_unit_of_few(task)}", *map(_plus_minus, row.values()))
            for labels, row in summary["few_labels"].items()
        ]
        kinds = [_CURVE_TITLES[kind] for kind in next(iter(summary["few_labels"].values()))]
        display.table("Few labels", [f"{task.primary}, mean ± std over seeds", *kinds], few)
    if "confusion_matrix" in summary:
        confusion = [
            (label, *counts) for label, counts in zip(task.labels, summary["confusion_matrix"], strict=True)
        ]
        display.table("Confusion (rows: true class)", ["", *task.labels], confusion)


def _scored(summary: dict[str, Any]) -> list[str]:
    """Names of the scores on held-out rows, without those of baselines."""
    baselines = tuple(f"_{kind}" for kind in Baseline)
    return [k for k, v in summary.items() if isinstance(v, float) and not k.endswith(baselines)]


def _plus_minus(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"
