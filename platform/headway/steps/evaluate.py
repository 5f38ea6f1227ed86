"""The step `evaluate`: the held-out score, beside what the same budget buys without pretraining."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway import cluster
from headway.config import EvaluateConfig, FinetuneConfig
from headway.config_files import validate
from headway.data.tokenizer import load_tokenizer
from headway.engine.encoder import load_classifier
from headway.engine.objectives import ClassificationObjective
from headway.engine.parallel import Worker
from headway.engine.trainer import Trainer
from headway.steps.context import Context, StepResult
from headway.steps.finetune import SETTINGS_FILE, FinetuningJob, task_folder
from headway.steps.models import model_folder
from headway.tasks.classification import (
    PreparedTask,
    classification_scores,
    predict_probabilities,
    tfidf_baseline,
)


def run_evaluate(config: EvaluateConfig, context: Context) -> StepResult:
    """Score a classifier on the held-out texts; with an `encoder`, its baselines too."""
    model = model_folder(config.model, context.tracking).resolve()
    task = PreparedTask(task_folder(config.task, model, context))
    summary: dict[str, Any] = score_model(model, task)
    rows = [("this model", summary["accuracy"], summary["macro_f1"])]
    if config.encoder is not None:
        encoder = model_folder(config.encoder, context.tracking).resolve()
        baselines = _baselines(config, encoder, model, task, context)
        rows += [(name, scores["accuracy"], scores["macro_f1"]) for name, scores in baselines.items()]
        summary["accuracy_random_init"] = baselines["same encoder, random weights"]["accuracy"]
        summary["accuracy_tfidf"] = baselines["TF-IDF + logistic regression"]["accuracy"]
        summary["few_labels"] = _few_labels(config, encoder, task, context)
    with context.tracking.run(context.experiment, context.step, config.model_dump(mode="json")) as run:
        run.log_metrics([(0, {k: v for k, v in summary.items() if isinstance(v, float)})])
        run.log_dict(summary, "evaluation.json")
    _show(context, task, summary, rows)
    headline = f"accuracy {summary['accuracy']:.4f} on {summary['texts']} held-out texts"
    if "accuracy_tfidf" in summary:
        headline += (
            f" (random weights {summary['accuracy_random_init']:.4f}, TF-IDF {summary['accuracy_tfidf']:.4f})"
        )
    return StepResult(str(model), headline, summary=summary)


def score_model(model: Path, task: PreparedTask) -> dict[str, Any]:
    """Scores of a saved classifier on the task's held-out texts."""
    classifier = load_classifier(model, task.labels, random_weights=False, seed=0)
    return _score(classifier, model, task)


def _score(classifier: Any, tokenizer_folder: Path, task: PreparedTask) -> dict[str, Any]:
    test = task.split("test")
    batches = test.batches(load_tokenizer(tokenizer_folder), max_length=task.max_length, batch_size=64)
    predicted = predict_probabilities(classifier, batches).argmax(-1)
    scores = classification_scores(test.labels, predicted, len(task.labels))
    return scores | {"texts": len(test.labels), "labels": task.labels}


def train_and_score(job: FinetuningJob, threads: int) -> dict[str, Any]:
    """Fine-tune in this process, on so many threads, and score on the held-out texts."""
    torch.set_num_threads(threads)
    objective = job.objective()
    assert isinstance(objective, ClassificationObjective)
    Trainer(objective, job.batches()[0], job.config, worker=Worker()).run()
    return _score(objective.model, job.model_folder, PreparedTask(job.task_folder))


def _baselines(
    config: EvaluateConfig, encoder: Path, model: Path, task: PreparedTask, context: Context
) -> dict[str, dict[str, Any]]:
    """Random weights on the model's own budget, and TF-IDF: all labels for both."""
    settings = config.finetune
    if (model / SETTINGS_FILE).is_file():
        settings = json.loads((model / SETTINGS_FILE).read_text())
    job = _job(encoder, task, settings | {"random_weights": True, "workers": 0})
    [random_init] = _run_all([job], context)
    tfidf = tfidf_baseline(task.split("train"), task.split("test"), len(task.labels))
    return {"same encoder, random weights": random_init, "TF-IDF + logistic regression": tfidf}


def _few_labels(
    config: EvaluateConfig, encoder: Path, task: PreparedTask, context: Context
) -> dict[str, dict[str, Any]]:
    """Accuracy with few labels a class: pretrained, random weights and TF-IDF, over the same seeds."""
    seeds = range(config.seeds)
    base = _job(encoder, task, config.finetune)
    jobs = [
        _variant(base, few, random_weights=random_weights, seed=seed)
        for few in config.few_labels
        for random_weights in (False, True)
        for seed in seeds
    ]
    accuracies = iter([scores["accuracy"] for scores in _run_all(jobs, context)])
    result = {}
    for few in config.few_labels:
        pretrained = [next(accuracies) for _ in seeds]
        random_init = [next(accuracies) for _ in seeds]
        result[str(few)] = {
            "pretrained": _spread(pretrained),
            "random_init": _spread(random_init),
            "tfidf": _spread([_tfidf_accuracy(task, few, seed) for seed in seeds]),
        }
    return result


def _variant(base: FinetuningJob, few: int, *, random_weights: bool, seed: int) -> FinetuningJob:
    config = base.config.model_copy(update={"random_weights": random_weights, "seed": seed})
    return replace(base, config=config, labels_per_class=few)


def _tfidf_accuracy(task: PreparedTask, few: int, seed: int) -> float:
    train = task.split("train").few(few, seed)
    return float(tfidf_baseline(train, task.split("test"), len(task.labels))["accuracy"])


def _job(encoder: Path, task: PreparedTask, settings: dict[str, Any]) -> FinetuningJob:
    full = settings | {"model": str(encoder), "task": str(task.folder)}
    return FinetuningJob(validate(FinetuneConfig, full, "finetune"), encoder, task.folder)


def _run_all(jobs: Sequence[FinetuningJob], context: Context) -> list[dict[str, Any]]:
    cluster.connect(context.address, context.tracking.uri)
    threads = max(1, cluster.available_cpus() // len(jobs))

    def progress(done: int) -> None:
        context.display.training(context.step, done, len(jobs), {}, started)

    started = context.display.now()
    results = cluster.map_on_cores(train_and_score, [(job, threads) for job in jobs], threads, progress)
    context.display.settle()
    return results


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "seeds": values}


def _show(
    context: Context, task: PreparedTask, summary: dict[str, Any], rows: list[tuple[str, float, float]]
) -> None:
    display = context.display
    title = f"{summary['texts']} held-out texts, all {task.facts['texts']['train']} training labels"
    display.table(title, ["", "accuracy", "macro-F1"], rows)
    if summary.get("few_labels"):
        few = [
            (
                f"{labels} labels a class",
                *(_plus_minus(row[k]) for k in ("pretrained", "random_init", "tfidf")),
            )
            for labels, row in summary["few_labels"].items()
        ]
        columns = ["accuracy, mean ± std over seeds", "pretrained", "random weights", "TF-IDF"]
        display.table("Few labels", columns, few)
    confusion = [
        (label, *counts) for label, counts in zip(task.labels, summary["confusion_matrix"], strict=True)
    ]
    display.table("Confusion (rows: true class)", ["", *task.labels], confusion)


def _plus_minus(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"
