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

from headway.cluster.worker_group import WorkerResources
from headway.config.base import ConfigError
from headway.config.sweep import SuccessiveHalving
from headway.config.training import TrainingConfig
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Metrics
from headway.runs.finetuning import FinetuningJob
from headway.runs.pretraining import PretrainingJob
from headway.runs.worker import TrainingJob
from headway.sweeps.ledger import Ledger, Trial, TrialState, validation_metrics
from headway.sweeps.population import adopt_state, newest_state, state_path, step_of
from headway.sweeps.schedulers import rung_steps
from headway.sweeps.search.space import trial_settings
from headway.sweeps.trial_group import train_on_group
from headway.sweeps.trial_worker import TrialSpec, train_trial


@dataclass(frozen=True)
class SweepJob:
    """What a sweep's trials train; small, since it is sent to every trial.

    Attributes:
        base: the job with the shared settings only.
        shared: settings that every trial has.
    """

    base: FinetuningJob | PretrainingJob
    shared: dict[str, Any]

    @property
    def config_class(self) -> type[TrainingConfig]:
        """The class of the settings that are searched."""
        return type(self.base.config)

    def settings_of(self, sampled: dict[str, Any]) -> TrainingConfig:
        """What the trial with these values trains with."""
        return trial_settings(self.config_class, self.shared, sampled)

    def with_values(self, sampled: dict[str, Any]) -> TrainingJob:
        """What the trial with these values trains."""
        job: Any = self.base
        return replace(job, config=self.settings_of(sampled))


@dataclass(frozen=True)
class TrialSettings:
    """How trials run.

    Attributes:
        folder: of the ledger; on storage that the driver and all trials share.
        resources: of each of a trial's processes.
        reports: rounds of a trial, each of which ends with an evaluation that the scheduler may judge.
        halving: a scheduler that judges only some of them; then only those are evaluated.
        saves_states: whether trials save states that others can continue from.
        measures_cost: whether to measure what each trial's model costs to run.
    """

    folder: Path
    resources: WorkerResources
    reports: int
    halving: SuccessiveHalving | None
    saves_states: bool
    measures_cost: bool = False


def run_trial(config: dict[str, Any], sweep_job: SweepJob, settings: TrialSettings) -> None:
    """Train one trial to its end, unless the scheduler stops it at a report.

    A trial that cannot train (settings that do not fit, a loss that is not finite) ends as failed and leaves
    the others alone. Any other error is left to Ray Tune.

    Args:
        config: `point`, with the trial's `number`, and `sampled`: dotted path → value.
        sweep_job: what is trained.
        settings: how.
    """
    from ray import tune

    point = config["point"]
    trial = Ledger(settings.folder).known_as(tune.get_context().get_trial_id(), point["number"])
    if trial.ended is not None:
        # Its process died between the record of its end and the last report.
        return
    trial.begin(point["sampled"])
    try:
        job, total_steps = _evaluated_by_round(sweep_job.with_values(point["sampled"]), trial, settings)
    except ConfigError as error:
        trial.end(TrialState.FAILED, str(error).splitlines()[0])
        return
    start = _start_state(trial) if settings.saves_states else None
    spec = TrialSpec(job, trial, start, settings.saves_states, settings.measures_cost)
    reporter = TuneReporter(spec, total_steps)
    if job.config.workers:
        train_on_group(spec, settings.resources, reporter.report)
    else:
        torch.set_num_threads(settings.resources.cpus)
        worker = Worker() if settings.resources.gpus else Worker(device=torch.device("cpu"))
        train_trial(spec, worker, time.time(), reporter.report)
    if trial.ended is None:
        trial.end(TrialState.DONE)
        reporter.report_last()


def _evaluated_by_round(job: Any, trial: Trial, settings: TrialSettings) -> tuple[Any, int]:
    """The job, evaluated when its scheduler judges unless its settings say how often; and its total steps."""
    config = job.config
    total = config.total_steps(job.batches()[0])
    update: dict[str, Any] = {}
    every = config.evaluate_every or math.ceil(total / settings.reports)
    # To keep the best model, or to stop early, a trial needs all of its evaluations.
    selects = config.best_by is not None or config.early_stopping_patience is not None
    if config.evaluate_every is None and config.evaluate_at is None:
        if settings.halving is not None and not selects:
            update = {"evaluate_at": rung_steps(settings.halving, every, total)}
        else:
            update = {"evaluate_every": every}
    trial.record_steps_per_round(every)
    return replace(job, config=config.model_copy(update=update)), total


def _start_state(trial: Trial) -> Path | None:
    """The state to continue from: another trial's if the scheduler says so, otherwise the trial's newest."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return newest_state(trial)
    with checkpoint.as_directory() as folder:
        return adopt_state(trial, Path(json.loads((Path(folder) / "state.json").read_text())))


class TuneReporter:
    """Reports a trial's evaluations to Ray Tune, each once; the last is held back until the model is saved.

    Args:
        spec: of the trial.
        total_steps: of the trial.
    """

    def __init__(self, spec: TrialSpec, total_steps: int) -> None:
        self._spec = spec
        self._total_steps = total_steps
        self._last_step = step_of(spec.start)
        self._held_back: dict[str, Any] | None = None

    def report(self, step: int, metrics: Metrics) -> None:
        """Report what was measured after so many steps, if it is an evaluation and new.

        Raises:
            SystemExit: the scheduler stops the trial.
        """
        from ray import tune

        if step <= self._last_step or "validation_loss" not in metrics:
            return
        self._last_step = step
        result = {"step": step, "round": self._spec.trial.round_of(step), **validation_metrics(metrics)}
        if step == self._total_steps:
            self._held_back = result
        elif self._spec.saves_states:
            # Ray Tune's own checkpoint only says where the state is.
            with tempfile.TemporaryDirectory() as folder:
                state = str(state_path(self._spec.trial, step))
                (Path(folder) / "state.json").write_text(json.dumps(state))
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(result)

    def report_last(self) -> None:
        """Report what was held back."""
        from ray import tune

        if self._held_back is not None:
            tune.report(self._held_back)
