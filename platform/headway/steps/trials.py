"""One trial of a sweep, in a Tune actor: train, report each evaluation, save the model at the end."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headway.config import ConfigError, TrainingConfig
from headway.engine.parallel import Worker
from headway.engine.schedules import skip_to
from headway.engine.trainer import Metrics, Trainer, TrainingError
from headway.steps.finetune import FinetuningJob
from headway.steps.ledger import Ledger, Trial, validation_metrics
from headway.steps.model_cost import model_cost
from headway.steps.place import TrainingPlace
from headway.steps.pretrain import PretrainingJob
from headway.steps.search_space import trial_settings
from headway.steps.training import TrainingJob, train_worker


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
        threads: cores of each trial.
        reports: evaluations in a trial at most.
        clones: whether trials may be told to go on from another's weights.
        costed: whether to measure what each trial's model costs to run.
    """

    folder: Path
    threads: int
    reports: int
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

    torch.set_num_threads(settings.threads)
    point = config["point"]
    trial = Ledger(settings.folder).known_as(tune.get_context().get_trial_id(), point["number"])
    trial.begin(point["sampled"])
    started = time.time()
    try:
        job = _reporting(stage.job(point["sampled"]), settings.reports)
        observer = _Observer(trial, job.config, settings)
        train_worker(job, TrainingPlace.at(trial.folder), Worker(), started, observer)
    except (ConfigError, TrainingError) as error:
        trial.end("failed", str(error).splitlines()[0])
        return
    trial.end("done")
    observer.report_last()


def _reporting(job: Any, reports: int) -> Any:
    """The same job, evaluated so many times a run at most, unless its settings say how often."""
    if job.config.evaluate_every is not None:
        return job
    every = math.ceil(job.config.total_steps(job.batches()[0].rows) / reports)
    return replace(job, config=job.config.model_copy(update={"evaluate_every": every}))


class _Observer:
    """Carries evaluations to Ray Tune; the last one is held back until the model is saved."""

    def __init__(self, trial: Trial, config: TrainingConfig, settings: TrialSettings) -> None:
        self._trial = trial
        self._every = config.evaluate_every or 1
        self._clones = settings.clones
        self._costed = settings.costed
        self._costs: Metrics = {}
        self._held_back: dict[str, Any] | None = None
        self._trainer: Trainer | None = None

    def begin(self, trainer: Trainer) -> None:
        """Go on from another trial's weights, or this one's own, where the scheduler says so."""
        self._trainer = trainer
        if self._costed:
            self._costs = {f"validation_{name}": value for name, value in model_cost(trainer).items()}
        saved = self._saved() if self._clones else None
        if saved is not None:
            _restore(trainer, saved)

    def costs(self) -> Metrics:
        """See `train_worker`."""
        return self._costs

    def report(self, step: int, metrics: Metrics) -> None:
        """See `train_worker`."""
        from ray import tune

        assert self._trainer is not None
        if step == 0 or "validation_loss" not in metrics:
            return
        result = {"step": step, "round": math.ceil(step / self._every), **validation_metrics(metrics)}
        if step == self._trainer.total_steps:
            self._held_back = result
        elif self._clones:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "state.json").write_text(json.dumps(str(self._save(step))))
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))
        else:
            tune.report(result)

    def report_last(self) -> None:
        """Hand on what was held back."""
        from ray import tune

        if self._held_back is not None:
            tune.report(self._held_back)

    def _save(self, step: int) -> Path:
        """Save what a clone needs; Ray Tune's own checkpoint only says where it is."""
        assert self._trainer is not None
        path = self._trial.folder / "population" / f"{step:09d}.pt"
        path.parent.mkdir(exist_ok=True)
        state = {
            "step": step,
            "model": self._trainer.objective.state_dict(),
            "optimizer": self._trainer.optimizer.state_dict(),
            "optimizer_kind": type(self._trainer.optimizer).__name__,
        }
        draft = path.with_suffix(".draft")
        torch.save(state, draft)
        return draft.replace(path)

    def _saved(self) -> Path | None:
        from ray import tune

        checkpoint = tune.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                return Path(json.loads((Path(folder) / "state.json").read_text()))
        own = sorted((self._trial.folder / "population").glob("*.pt"))
        return own[-1] if own else None


def _restore(trainer: Trainer, path: Path) -> None:
    """Weights and the optimizer's memory from a saved state; rates and decay stay the trial's own.

    An optimizer of another kind begins without memory.
    """
    state = torch.load(path, map_location=trainer.worker.device, weights_only=True)
    trainer.objective.load_state_dict(state["model"])
    if type(trainer.optimizer).__name__ == state["optimizer_kind"]:
        groups = trainer.optimizer.param_groups
        own = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        trainer.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(trainer.optimizer.param_groups, own, strict=True):
            group.update(settings)
    skip_to(trainer.schedule, state["step"])
    trainer.compute.follow()
    trainer.start_step = state["step"]
