"""One trial of a sweep, in a Tune actor: train, report each evaluation, save the model at the end.

A trial trains in the actor itself, or on a group of Ray Train's workers that the actor starts and follows.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway.cluster.worker_group import Share
from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Metrics
from headway.runs.finetuning import FinetuningJob
from headway.runs.pretraining import PretrainingJob
from headway.runs.worker import TrainingJob
from headway.sweeps.ledger import Ledger, Trial, validation_metrics
from headway.sweeps.population import newest_state, state_path, step_of
from headway.sweeps.search import rung_steps
from headway.sweeps.space import trial_settings
from headway.sweeps.trial_group import train_on_group
from headway.sweeps.trial_worker import Part, train_part


@dataclass(frozen=True)
class Stage:
    """What a sweep's trials train; small, since it travels to every trial.

    Attributes:
        base: the job with the shared settings alone.
        shared: settings that every trial has.
    """

    base: FinetuningJob | PretrainingJob
    shared: dict[str, Any]

    @property
    def config_class(self) -> type[TrainingConfig]:
        """Of the settings that are searched."""
        return type(self.base.config)

    def job(self, sampled: dict[str, Any]) -> TrainingJob:
        """What the trial with these values trains."""
        job: Any = self.base
        return replace(job, config=trial_settings(self.config_class, self.shared, sampled))


@dataclass(frozen=True)
class TrialSettings:
    """How trials run.

    Attributes:
        folder: of the ledger; on storage that the driver and all trials share.
        share: of each of a trial's processes.
        reports: rounds in a trial, each of which ends with an evaluation that the scheduler may judge.
        at_rungs_only: whether it judges only some of them, which are all that is then evaluated.
        clones: whether trials may be told to go on from another's weights.
        costed: whether to measure what each trial's model costs to run.
    """

    folder: Path
    share: Share
    reports: int
    at_rungs_only: bool
    clones: bool
    costed: bool = False


def run_trial(config: dict[str, Any], stage: Stage, settings: TrialSettings) -> None:
    """Train one trial to its end, unless the scheduler stops it at a report.

    A trial that cannot train (settings that do not fit, a loss that is no number) ends as failed and
    leaves the others alone. Any other failure is Ray Tune's to handle.

    Args:
        config: `point`, with the trial's `number`, and `sampled`: dotted path → value.
        stage: what is trained.
        settings: how.
    """
    from ray import tune

    point = config["point"]
    trial = Ledger(settings.folder).known_as(tune.get_context().get_trial_id(), point["number"])
    trial.begin(point["sampled"])
    try:
        job, total = _evaluated_by_round(stage.job(point["sampled"]), trial, settings)
    except ConfigError as error:
        trial.end("failed", str(error).splitlines()[0])
        return
    start = _start(trial) if settings.clones else None
    part = Part(job, trial, start, settings.clones, settings.costed)
    reports = Reports(part, total)
    if job.config.workers:
        train_on_group(part, settings.share, reports.hand_on)
    else:
        torch.set_num_threads(settings.share.cpus)
        worker = Worker() if settings.share.gpus else Worker(device=torch.device("cpu"))
        train_part(part, worker, time.time(), reports.hand_on)
    if trial.ended is None:
        trial.end("done")
        reports.hand_on_last()


def _evaluated_by_round(job: Any, trial: Trial, settings: TrialSettings) -> tuple[Any, int]:
    """The same job, evaluated where its scheduler judges unless its settings say how often; and its steps."""
    config = job.config
    total = config.total_steps(job.batches()[0])
    update: dict[str, Any] = {}
    every = config.evaluate_every or math.ceil(total / settings.reports)
    # To keep the best model, or to stop by it, a trial needs all its evaluations.
    looked_at_inside = config.best_by is not None or config.early_stopping_patience is not None
    if config.evaluate_every is None and config.evaluate_at is None:
        if settings.at_rungs_only and not looked_at_inside:
            update = {"evaluate_at": rung_steps(every, total)}
        else:
            update = {"evaluate_every": every}
    trial.note_round(every)
    return replace(job, config=config.model_copy(update=update)), total


def _start(trial: Trial) -> Path | None:
    """The state to go on from: another trial's, where the scheduler says so, or the newest of its own."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return newest_state(trial)
    with checkpoint.as_directory() as folder:
        return Path(json.loads((Path(folder) / "state.json").read_text()))


class Reports:
    """Carries a trial's evaluations to Ray Tune, each once; the last is held back until the model is saved.

    Args:
        part: of the trial.
        total_steps: of the trial.
    """

    def __init__(self, part: Part, total_steps: int) -> None:
        self._part = part
        self._total_steps = total_steps
        self._last_step = step_of(part.start)
        self._held_back: dict[str, Any] | None = None

    def hand_on(self, step: int, metrics: Metrics) -> None:
        """Report what was measured after so many steps, if it is an evaluation and new.

        Raises:
            SystemExit: the scheduler stops the trial.
        """
        from ray import tune

        if step <= self._last_step or "validation_loss" not in metrics:
            return
        self._last_step = step
        result = {"step": step, "round": self._part.trial.round_of(step), **validation_metrics(metrics)}
        if step == self._total_steps:
            self._held_back = result
        elif self._part.clones:
            # Ray Tune's own checkpoint only says where the state is.
            with tempfile.TemporaryDirectory() as folder:
                state = str(state_path(self._part.trial, step))
                (Path(folder) / "state.json").write_text(json.dumps(state))
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(result)

    def hand_on_last(self) -> None:
        """Report what was held back."""
        from ray import tune

        if self._held_back is not None:
            tune.report(self._held_back)
