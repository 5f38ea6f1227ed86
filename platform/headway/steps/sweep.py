"""The step `sweep`: fine-tuning over a search space on Ray Tune, each trial a child run in MLflow."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from headway import cluster
from headway.config import SweepConfig
from headway.data.atomic import atomic_folder
from headway.engine.parallel import Worker
from headway.engine.trainer import Metrics, Trainer
from headway.steps.context import Context, StepResult
from headway.steps.finetune import FinetuningJob, task_folder
from headway.steps.models import model_folder
from headway.steps.search_space import check_search, trial_settings, tune_space
from headway.steps.sweep_report import Leaderboard

_REPORTS_A_TRIAL = 6


class Winner(NamedTuple):
    """The trial whose model the sweep hands on."""

    trial_id: str
    settings: dict[str, Any]
    metrics: Metrics
    model: Path


def run_sweep(config: SweepConfig, context: Context) -> StepResult:
    """Search, and hand on the model of the best trial that trained to its end.

    Raises:
        ConfigError: a search over settings that do not exist or are not allowed.
        RuntimeError: every trial failed.
    """
    check_search(config.search, config.finetune)
    model = model_folder(config.model, context.tracking).resolve()
    prepared = task_folder(config.task, model, context)
    job = FinetuningJob(trial_settings(config.finetune, {}), model, prepared, config.task.labels_per_class)
    cluster.connect(context.address, context.tracking.uri)
    with context.tracking.run(context.experiment, context.step, config.model_dump(mode="json")) as parent:
        board = Leaderboard(config, context, parent)
        results = _tune(config, context, job, board)
        winner = _winner(config, context, results)
        parent.log_metrics([(0, {f"best_{name}": value for name, value in winner.metrics.items()})])
    board.show()
    for trial in (context.folder / "trials").iterdir():
        if trial.name != winner.trial_id:
            shutil.rmtree(trial)
    summary = {
        "trials": len(results),
        "failed": results.num_errors,
        "stopped_early": board.stopped_early,
        "best": {"trial": winner.trial_id, "settings": winner.settings, **winner.metrics},
        "mlflow_run_id": parent.run_id,
    }
    headline = (
        f"{len(results)} trials, {board.stopped_early} stopped early, {results.num_errors} failed; best "
        f"validation {config.metric} {winner.metrics[config.metric]:.4f} with "
        + ", ".join(f"{path} {_brief(value)}" for path, value in winner.settings.items())
    )
    return StepResult(str(winner.model), headline, {"best": str(winner.model)}, summary)


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _tune(config: SweepConfig, context: Context, job: FinetuningJob, board: Leaderboard) -> Any:
    _set_quiet()
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    total_steps = job.config.total_steps(job.batches()[0].rows)
    schedulers = {
        "fifo": FIFOScheduler,
        "asha": partial(
            ASHAScheduler,
            time_attr="step",
            max_t=total_steps,
            grace_period=max(1, total_steps // 4),
            reduction_factor=2,
        ),
    }
    concurrency = min(config.concurrency or cluster.available_cpus(), config.samples)
    threads = max(1, cluster.available_cpus() // concurrency)
    trial = partial(
        run_trial,
        job=job,
        shared=config.finetune,
        folder=context.folder.resolve() / "trials",
        threads=threads,
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": threads}),
        param_space=tune_space(config.search),
        tune_config=tune.TuneConfig(
            metric=config.metric,
            mode="min" if config.metric == "loss" else "max",
            num_samples=config.samples,
            reuse_actors=True,
            search_alg=BasicVariantGenerator(random_state=config.seed, max_concurrent=concurrency),
            scheduler=schedulers[config.scheduler](),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(context.folder.resolve()), callbacks=[board.callback()], verbose=0
        ),
    )
    return tuner.fit()


def _set_quiet() -> None:
    """Headway shows its own table and logs to MLflow; Tune reads these when it is imported."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # A trial stopped early ends at its next report; its actor is kept for the next trial meanwhile.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")


def run_trial(
    sampled: dict[str, Any], job: FinetuningJob, shared: dict[str, Any], folder: Path, threads: int
) -> None:
    """One trial, in a Tune actor: train, report each evaluation, save the model if it gets to the end.

    Args:
        sampled: dotted path → value, from the search space.
        job: the model and the task.
        shared: settings of every trial.
        folder: of all trials; this one's model goes to `<trial id>/model`.
        threads: cores of this trial.
    """
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    config = trial_settings(shared, sampled)
    rows = job.batches()[0].rows
    every = config.evaluate_every or max(1, config.total_steps(rows) // _REPORTS_A_TRIAL)
    job = replace(job, config=config.model_copy(update={"evaluate_every": every}))
    target = folder / tune.get_context().get_trial_id() / "model"
    batches, validation = job.batches()

    def report(step: int, metrics: Metrics) -> None:
        if step and "validation_loss" in metrics:
            if step == trainer.total_steps:
                with atomic_folder(target) as draft:
                    job.save(trainer.objective, draft)
            tune.report(
                {
                    "step": step,
                    "accuracy": metrics["validation_classification_accuracy"],
                    "loss": metrics["validation_loss"],
                }
            )

    trainer = Trainer(
        job.objective(), batches, job.config, validation=validation, worker=Worker(), report=report
    )
    trainer.run()


def _winner(config: SweepConfig, context: Context, results: Any) -> Winner:
    finished = []
    for result in results:
        trial_id = (result.metrics or {}).get("trial_id")
        model = context.folder / "trials" / str(trial_id) / "model"
        if result.error is None and model.is_dir():
            metrics = {name: float(result.metrics[name]) for name in ("accuracy", "loss")}
            finished.append(Winner(str(trial_id), dict(result.config), metrics, model))
    if not finished:
        reasons = [str(error).strip().splitlines()[-1] for error in results.errors]
        raise RuntimeError(f"no trial of the sweep finished: {reasons[0] if reasons else 'none was run'}")
    sign = 1.0 if config.metric == "loss" else -1.0
    return min(finished, key=lambda trial: (sign * trial.metrics[config.metric], trial.metrics["loss"]))
