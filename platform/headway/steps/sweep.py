"""The step `sweep`: trains over a search space on Ray Tune; each trial is a child run in MLflow."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from headway.cluster import connect
from headway.config.finetune import FinetuneConfig
from headway.config.pretrain import PretrainConfig
from headway.config.sweep import COSTS, SuccessiveHalving, SweepConfig
from headway.config.tasks import ClassificationTask
from headway.data.atomic import once, write_atomically
from headway.ray_data.corpus import prepared_corpus
from headway.redaction import redacted
from headway.runs.class_counts import tell_class_counts
from headway.runs.context import Context, StepResult
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.held_out import score_models
from headway.runs.lineage.data_splits import pretraining_splits, task_splits
from headway.runs.lineage.step_run import record_run, step_parent, step_tags
from headway.runs.pretraining import PretrainingJob, corpus_folder, start_from, teacher_folder
from headway.runs.teaching import taught_job
from headway.sweeps.checks import check_sweep
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ledger
from headway.sweeps.report.leaderboard import Leaderboard
from headway.sweeps.report.plots import write_report
from headway.sweeps.report.trial_log import TrialLog
from headway.sweeps.resources import TrialResources, trial_resources
from headway.sweeps.schedulers import make_scheduler, replay
from headway.sweeps.search.sampler import Sampler, trial_count, trial_source
from headway.sweeps.search.space import Space, parse_search, trial_settings
from headway.sweeps.time_budget import TimeBudget
from headway.sweeps.trials import SweepJob, TrialSettings, run_trial
from headway.sweeps.tuning import run_trials, set_quiet, start_ahead, stop_rest
from headway.sweeps.winner import (
    Measured,
    described,
    finished_trials,
    headline,
    pareto_front,
    rule,
    summary_of,
    winner_of,
)
from headway.tasks.task import open_task
from headway.tracking import Run
from headway.tracking.data_split import DataSplit
from headway.tracking.logged_models import Scores, log_reference
from headway.tracking.references import model_folder


def run_sweep(config: SweepConfig, context: Context) -> StepResult:
    """Search settings, and return the model of the best trial that trained to its end.

    With several metrics, the winner is the best by the second metric among the trials on the Pareto front
    that are within `tolerance` of the best by the first.

    Called again in the same folder after the driver died, it continues the sweep: trials that ended are not
    run again, and those that had begun continue from their newest state, if they ran long enough to have one.

    Raises:
        ConfigError: a search over settings that do not exist or are not allowed.
        RuntimeError: every trial failed.
    """
    check_sweep(config)
    space = parse_search(config.search, config.trained_class)
    job, metrics = _sweep_job(config, context)
    ledger = Ledger(context.folder.resolve() / "trials")
    context.join_cluster()
    if connect.available_cpus() < job.base.config.max_workers:
        context.join_cluster(job.base.config.max_workers)
    resources = trial_resources(config, job.base.config, trial_count(config, space))
    start_ahead(resources)
    data = _data(job)
    parent = _parent_run(config, context, list(data.values()))
    try:
        if isinstance(job.base, FinetuningJob):
            tell_class_counts(job.base.splits, context, parent)
        with (
            TrialLog(context, parent, [data["train"], data["validation"]]) as log,
            EndedTrials(ledger, job.settings_of, metrics) as ended,
        ):
            board = Leaderboard(ledger, context.display, list(space), metrics, log, ended)
            board.reconcile()
            _tune(config, context, job, resources, ledger, space, board)
        finished = finished_trials(ledger, job.settings_of, metrics)
        winner = winner_of(finished, metrics, config.tolerance)
        summary = summary_of(ledger, winner, metrics[0]) | {"mlflow_run_id": parent.run_id}
        front = pareto_front(finished, metrics) if len(metrics) > 1 else []
        if front:
            summary["rule"] = rule(metrics, config.tolerance)
            summary["front"] = [described(trial) for trial in front]
        parent.log_metrics([(0, {f"best_{name}": value for name, value in winner.metrics.items()})])
        scores = [Scores({f"validation_{n}": v for n, v in winner.metrics.items()}, data["validation"])]
        if config.test and isinstance(job.base, FinetuningJob):
            summary["test"] = _test(winner, job.base.task_folder, context)
            scores.append(Scores({f"test_{n}": v for n, v in summary["test"].items()}, data["test"]))
        kind = job.base.task.kind if isinstance(job.base, FinetuningJob) else "pretrain"
        settings = job.with_values(winner.trial.sampled).config.model_dump(mode="json")
        made = {"headway.trial": winner.trial.folder.name}
        log_reference(parent, context.step, winner.trial.model, kind, settings, scores, made)
        write_report(ledger, list(space), metrics, context.folder, parent, winner, front)
    except (KeyboardInterrupt, SystemExit):
        parent.abandon("KILLED")
        raise
    except BaseException as error:
        parent.abandon("FAILED", redacted(error))
        raise
    parent.close()
    board.show()
    ledger.keep_only(winner.trial)
    model = str(context.folder / winner.trial.model.relative_to(context.folder.resolve()))
    return StepResult(model, headline(summary, metrics), {"best": model}, summary)


def _sweep_job(config: SweepConfig, context: Context) -> tuple[SweepJob, list[str]]:
    """What is trained, and the metrics that say which trial is best."""
    given = [config.metric] if isinstance(config.metric, str) else config.metric
    if config.pretrain is not None:
        settings = trial_settings(PretrainConfig, config.pretrain, {})
        start = start_from(settings, context)
        corpus = corpus_folder(settings, start, context, prepared_corpus)
        # The corpus is prepared once; every trial opens the same one.
        shared = config.pretrain | {"corpus": str(corpus)}
        base = PretrainingJob(settings, corpus, start, teacher_folder(settings, corpus, context))
        return SweepJob(base, shared), given or ["loss"]
    assert config.model is not None and config.task is not None
    model = model_folder(config.model, context.tracking).resolve()
    prepared = task_folder(config.task, model, context)
    shared = {"model": str(model), "task": str(prepared)} | config.finetune
    few = config.task.labels_per_class if isinstance(config.task, ClassificationTask) else None
    job = FinetuningJob(trial_settings(FinetuneConfig, shared, {}), model, prepared, few)
    job = taught_job(job, context)
    return SweepJob(job, shared), given or [open_task(prepared).primary]


def _data(job: SweepJob) -> dict[str, DataSplit]:
    """The rows that all trials read, by their split."""
    if isinstance(job.base, FinetuningJob):
        return task_splits(job.base.task)
    return pretraining_splits(job.base.corpus_folder)


def _parent_run(config: SweepConfig, context: Context, data: list[DataSplit]) -> Run:
    """The MLflow run of the sweep: the one that an earlier driver began in this folder, or a new one."""
    path = context.folder / "sweep.json"
    context.tracking.experiment_id(context.experiment)  # an address that is wrong is told at once
    tracking, tags, pipeline = context.tracking.patient(), step_tags(config, data), step_parent(context, data)
    run = None
    if path.is_file():
        run_id = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        run = tracking.reopen(run_id, pipeline, tags)
    if run is None:
        settings = config.model_dump(mode="json")
        run = tracking.start_run(context.experiment, context.step, settings, pipeline, tags=tags)
    record_run(context, run)
    run.log_inputs(data)
    about = {"run_id": run.run_id, "config": config.model_dump(mode="json")}
    write_atomically(path, json.dumps(about, indent=2))
    return run


def _tune(
    config: SweepConfig,
    context: Context,
    job: SweepJob,
    resources: TrialResources,
    ledger: Ledger,
    space: Space,
    board: Leaderboard,
) -> None:
    """Run the trials that have not ended yet, as long as there is time."""
    sampler = Sampler(config, space, board.metrics)
    budget = TimeBudget(ledger, config.time_budget_s, board.metric, board.mode)
    remaining = sampler.total - sum(trial.state.is_terminal for trial in ledger.trials())
    if remaining and not budget.is_over():
        set_quiet()
        scheduler = make_scheduler(config, space, ledger, board.metric, board.mode)
        replay(ledger.trials(), scheduler, sampler, config, job.settings_of)
        source = trial_source(config, sampler, ledger, job.settings_of, budget, remaining)
        settings = _trial_settings(config, resources, ledger, board)
        trial = partial(run_trial, sweep_job=job, settings=settings)
        run_trials(trial, source, scheduler, budget, board, resources, context.folder)
    if budget.is_over():
        stop_rest(ledger, board)


def _trial_settings(
    config: SweepConfig, resources: TrialResources, ledger: Ledger, board: Leaderboard
) -> TrialSettings:
    return TrialSettings(
        ledger.folder,
        resources.each,
        config.reports,
        halving=config.scheduler if isinstance(config.scheduler, SuccessiveHalving) else None,
        saves_states=config.scheduler.name == "pbt",
        measures_cost=not set(COSTS).isdisjoint(board.metrics),
    )


def _test(winner: Measured, task: Path, context: Context) -> dict[str, Any]:
    """The winner's scores on the held-out rows, which no trial has seen; measured only once."""

    def measure() -> dict[str, Any]:
        [scores] = score_models([winner.trial.model], [open_task(task)], context)
        return {name: value for name, value in scores.items() if isinstance(value, float)}

    measured: dict[str, Any] = once(context.folder / "test.json", measure)
    return measured
