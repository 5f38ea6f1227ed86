"""Runs a sweep's trials on Ray Tune."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headway.cluster import connect, ray_internals
from headway.cluster.interruption import raised_after_cleanup
from headway.cluster.worker_group import start_workers_ahead
from headway.sweeps.ledger import Ending, Ledger, TrialState
from headway.sweeps.report.leaderboard import Leaderboard
from headway.sweeps.resources import TrialResources, follow_cluster
from headway.sweeps.search.sampler import TrialSource
from headway.sweeps.time_budget import TimeBudget


def run_trials(
    trial: Callable[..., None],
    source: TrialSource,
    scheduler: Any,
    budget: TimeBudget,
    board: Leaderboard,
    resources: TrialResources,
    folder: Path,
) -> None:
    """Run trials on Ray Tune until the source has no more, or the time is over.

    Args:
        trial: what Ray Tune calls for each; see `headway.sweeps.trials.run_trial`.
        source: of the trials.
        scheduler: of Ray Tune; None for its usual one, which stops no trial.
        budget: of time.
        board: follows the trials.
        resources: of each trial, and how many run at once.
        folder: of the step.
    """
    from ray import tune

    # What Ray Tune recorded for an earlier driver; the ledger is the only record that counts.
    shutil.rmtree(folder / "tune", ignore_errors=True)
    searcher, callbacks = source.searcher, [board.callback()]
    if searcher is not None:
        searcher = tune.search.ConcurrencyLimiter(searcher, max_concurrent=resources.concurrency)
        if resources.follows_cluster:
            callbacks.append(follow_cluster(searcher, resources))
    tuner = tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([_held_by_trial(resources)])),
        param_space=source.param_space,
        tune_config=tune.TuneConfig(
            num_samples=source.num_samples,
            max_concurrent_trials=resources.concurrency if searcher is None else None,
            search_alg=searcher,
            scheduler=scheduler,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.resolve()),
            callbacks=callbacks,
            stop=budget.stopper(),
            # A trial whose process died restarts from its newest state.
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    with raised_after_cleanup():
        tuner.fit()


def stop_rest(ledger: Ledger, board: Leaderboard) -> None:
    """Record as stopped the trials that still ran when the time was over: Ray Tune calls back for none."""
    for trial in ledger.trials():
        if trial.ended is None:
            board.end(trial, Ending(TrialState.STOPPED, "the time was over"))


def _held_by_trial(resources: TrialResources) -> dict[str, float]:
    """What a trial's actor reserves; if it has workers, only a byte, since Ray wants something."""
    if resources.workers:
        return {"memory": 1}
    return {"CPU": resources.each.cpus, "GPU": resources.each.gpus}


def start_ahead(resources: TrialResources) -> None:
    """Start the processes of the first trials while the driver prepares the sweep."""
    environment = ray_internals.trial_environment()
    if environment is not None:
        connect.start_processes_ahead(resources.concurrency, environment)
    if resources.workers:
        start_workers_ahead(resources.concurrency * resources.workers, resources.each)


def set_quiet() -> None:
    """Silence Ray Tune, which reads these when imported: Headway shows its own table and logs to MLflow."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # A trial that is stopped ends at its next report; until then its actor is kept for the next trial.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    # How many trials may wait for their actors; how many there may be at all is the searcher's to say.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "200")
