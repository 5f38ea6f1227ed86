"""One candidate of a search, in a Tune actor: cut, trained by the original, rounded, and measured."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.cluster.worker_group import WorkerResources
from headway.compress.judge import Judge
from headway.compress.prune import prune
from headway.compress.search.job import SearchJob
from headway.compress.search.outcome import measured, record
from headway.compress.smaller_folder import write_smaller
from headway.config.base import ConfigError
from headway.config.compression.compress import CandidateConfig
from headway.config.compression.prune import PruneConfig
from headway.data.atomic import atomic_folder, link_or_copy
from headway.engine.formats.packed import is_packed
from headway.engine.inference.int8 import FILE as INT8
from headway.engine.model.encoder import load_as_saved, save_model
from headway.engine.parallel.worker import Worker
from headway.inference.golden import FILE as GOLDEN
from headway.runs.worker import selection_of
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.trial_worker import TrialSpec, train_trial

_START = "start"
"""The folder, in a trial's, of what was cut and is not trained yet."""


def run_candidate(config: dict[str, Any], job: SearchJob, folder: Path, resources: WorkerResources) -> None:
    """Make and measure one candidate, and report it to Ray Tune.

    One that cannot be made ends as failed and leaves the others alone. Any other error is left to Ray Tune,
    which starts the trial again; it continues with what was finished.

    Args:
        config: `point`, with the trial's `number`, and `sampled`: dotted path → value.
        job: what is made smaller.
        folder: of the ledger.
        resources: of the trial.
    """
    from ray import tune

    point = config["point"]
    trial = Ledger(folder).known_as(tune.get_context().get_trial_id(), point["number"])
    if trial.ended is not None:
        # Its process died between the record of its end and the report.
        return
    trial.begin(point["sampled"])
    torch.set_num_threads(resources.cpus)
    worker = Worker() if resources.gpus else Worker(device=torch.device("cpu"))
    try:
        result = try_candidate(job, trial, worker)
    except ConfigError as error:
        trial.end(TrialState.FAILED, str(error).splitlines()[0])
        return
    if result is not None:
        trial.end(TrialState.DONE)
        tune.report(result)


def try_candidate(job: SearchJob, trial: Trial, worker: Worker) -> dict[str, Any] | None:
    """Make a trial's model and measure it; what an earlier process finished of that is not done again.

    Returns:
        What is reported; None if the trial has failed, which is recorded.

    Raises:
        ConfigError: the model cannot be cut so.
    """
    candidate = job.candidate_of(trial.sampled)
    if not trial.model.is_dir():
        if job.is_original(candidate):
            with atomic_folder(trial.model) as draft:
                _copy(job.original, draft)
        else:
            _train(job, candidate, trial, worker)
            if trial.ended is not None:
                return None
    shutil.rmtree(trial.folder / _START, ignore_errors=True)
    if job.config.weights == "float16" and not is_packed(trial.model):
        store_in_16_bits(trial.model)
    return record(job, trial, measured(job, trial))


def _copy(original: Path, folder: Path) -> None:
    """Copy a model without what holds of it only in its old precision, or is said of it."""
    ignored = shutil.ignore_patterns(INT8, GOLDEN, "README.md")
    shutil.copytree(original, folder, ignore=ignored, copy_function=link_or_copy, dirs_exist_ok=True)


def _train(job: SearchJob, candidate: CandidateConfig, trial: Trial, worker: Worker) -> None:
    """Cut the original, and train what is left of it."""
    start = trial.folder / _START
    if not start.is_dir():
        with atomic_folder(start) as draft:
            _cut(job, candidate, draft)
    task = job.task_of(start)
    settings = candidate.finetune.model_copy(update={"model": str(start), "task": str(task.folder)})
    if selection_of(settings) is None and settings.evaluate_every is None and settings.evaluate_at is None:
        # It is measured at its end; what it scored on the way decides nothing.
        settings = settings.model_copy(update={"evaluate_every": 10**9})
    training = replace(job.base, config=settings, model_folder=start, task_folder=task.folder)
    spec = TrialSpec(training, trial, None, saves_states=False, measures_cost=False)
    train_trial(spec, worker, time.time())


def _cut(job: SearchJob, candidate: CandidateConfig, folder: Path) -> None:
    judge = Judge.of(job.base.task, job.original)
    objective = judge.objective(job.original)
    smaller: Any = objective.model
    wanted = {"heads": candidate.heads, "neurons": candidate.neurons}
    layers = None if candidate.layers is None else job.kept_layers(candidate.layers)
    if layers is not None or any(wanted.values()):
        settings = {"model": str(job.original), "task": str(job.base.task_folder), "layers": layers} | wanted
        if not any(wanted.values()):
            settings |= {"by": "magnitude", "task": None}
        sample = judge.sample(job.config.calibration_rows, job.config.seed)
        smaller = prune(smaller, PruneConfig.model_validate(settings), objective, sample)
    if candidate.vocabulary is not None:
        judge = judge.with_vocabulary(smaller, candidate.vocabulary, job.stores)
    write_smaller(smaller, job.original, folder, judge.tokenizer)


def store_in_16_bits(folder: Path) -> None:
    """Store a model's weights in float16, unless one of them is too large for that."""
    model = load_as_saved(folder).half()
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        save_model(model, Path(draft))
        for path in Path(draft).iterdir():
            path.replace(folder / path.name)
