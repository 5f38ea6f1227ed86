"""What each training process of a sweep's trial does: its part of the training, looked on by the trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headway.config.base import ConfigError
from headway.engine.parallel.worker import Worker
from headway.engine.training.health import TrainingError
from headway.engine.training.trainer import Metrics, Trainer
from headway.runs.paths import RunPaths
from headway.runs.worker import TrainingJob, train_worker
from headway.sweeps.ledger import Trial
from headway.sweeps.model_cost import model_cost
from headway.sweeps.population import restore_state, save_state, state_path

HandOn = Callable[[int, Metrics], None]
"""Takes the number of steps done and what was measured then."""


@dataclass(frozen=True)
class Part:
    """What a trial trains; small, since it travels to each of its workers.

    Attributes:
        job: with the trial's own settings.
        trial: where it goes.
        start: a state to go on from; None to begin with the job's weights.
        clones: whether states are saved for others to go on from.
        costed: whether to measure what the model costs to run.
    """

    job: TrainingJob
    trial: Trial
    start: Path | None
    clones: bool
    costed: bool

    @property
    def place(self) -> RunPaths:
        """Where all of it goes."""
        return RunPaths.at(self.trial.folder)


def train_part(part: Part, worker: Worker, launched_at: float, hand_on: HandOn | None = None) -> None:
    """Train as one worker of the trial; where it cannot train, the trial has failed.

    Args:
        part: what is trained.
        worker: this process's place.
        launched_at: seconds since the epoch when the trial began.
        hand_on: is told of all that is measured; None where the trial reads the journal.
    """
    try:
        train_worker(part.job, part.place, worker, launched_at, _Observer(part, hand_on))
    except (ConfigError, TrainingError) as error:
        part.trial.end("failed", str(error).splitlines()[0])


class _Observer:
    """See `headway.runs.worker.Observer`."""

    def __init__(self, part: Part, hand_on: HandOn | None) -> None:
        self._part = part
        self._hand_on = hand_on
        self._costs: Metrics = {}
        self._trainer: Trainer | None = None

    def begin(self, trainer: Trainer) -> None:
        """Measure the model's cost, and go on from another trial's weights, or this one's own."""
        self._trainer = trainer
        if self._part.costed:
            self._costs = {f"validation_{name}": value for name, value in model_cost(trainer).items()}
        if self._part.start is not None:
            restore_state(trainer, self._part.start)

    def evaluated(self, step: int) -> Metrics:
        """Save what a clone needs: before the trial, which may read the journal, learns of the evaluation."""
        trainer = self._trainer
        assert trainer is not None
        if self._part.clones and trainer.worker.rank == 0 and step < trainer.total_steps:
            save_state(trainer, state_path(self._part.trial, step), step)
        return self._costs

    def report(self, step: int, metrics: Metrics) -> None:
        """Tell the trial."""
        if self._hand_on is not None:
            self._hand_on(step, metrics)
