"""What each training process of a sweep's trial does: its part of the training, watched by the trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headway.config.base import ConfigError
from headway.data.batches import BatchSource
from headway.engine.parallel.worker import Worker
from headway.engine.training.health import TrainingError
from headway.engine.training.trainer import Metrics, Trainer
from headway.runs.journal import read_journal
from headway.runs.paths import RunPaths
from headway.runs.worker import TrainingJob, train_worker
from headway.sweeps.ledger import Trial, TrialState
from headway.sweeps.model_cost import model_cost
from headway.sweeps.population import restore_state, save_state, state_path

SECONDS_BETWEEN_STATES = 60.0
"""Of a trial, at least. Shorter trials begin again if they are lost: no storage would keep up with a thousand
that save all that they learned every few seconds."""

Report = Callable[[int, Metrics], None]
"""Takes the number of steps done and what was measured then."""


@dataclass(frozen=True)
class TrialSpec:
    """What a trial trains; small, since it is sent to each of its workers.

    Attributes:
        job: with the trial's values set.
        trial: its folder.
        start: the state to continue from; None to begin with the job's weights.
        saves_states: whether to save states that other trials can continue from.
        measures_cost: whether to measure what the model costs to run.
    """

    job: TrainingJob
    trial: Trial
    start: Path | None
    saves_states: bool
    measures_cost: bool

    @property
    def paths(self) -> RunPaths:
        """Where all of it goes."""
        return RunPaths.at(self.trial.folder)


def train_trial(spec: TrialSpec, worker: Worker, launched_at: float, report: Report | None = None) -> None:
    """Train as one worker of the trial; if it cannot train, record that the trial has failed.

    Args:
        spec: what is trained.
        worker: which of the trial's workers this process is.
        launched_at: when the trial began, in seconds since the epoch.
        report: receives all that is measured; None if the trial reads the journal.
    """
    try:
        train_worker(spec.job, spec.paths, worker, launched_at, _TrialObserver(spec, report))
    except (ConfigError, TrainingError) as error:
        spec.trial.end(TrialState.FAILED, str(error).splitlines()[0])


class _TrialObserver:
    """See `headway.runs.worker.Observer`."""

    def __init__(self, spec: TrialSpec, report: Report | None) -> None:
        self._spec = spec
        self._report = report
        self._costs: Metrics = {}
        self._trainer: Trainer | None = None
        # States that others can continue from are saved at each evaluation.
        self.seconds_between_states = None if spec.saves_states else SECONDS_BETWEEN_STATES

    def begin(self, trainer: Trainer, validation: BatchSource | None) -> None:
        """Measure the model's cost, and load the state of the trial to continue from, if there is one.

        What a trial had measured before it was lost is reported again: a scheduler that is new does not know.
        """
        self._trainer = trainer
        if self._report is not None and not self._spec.saves_states:
            for entry in read_journal(self._spec.paths.journal):
                if 0 < entry.step <= trainer.start_step:
                    self._report(entry.step, entry.metrics)
        if self._spec.measures_cost:
            costs = model_cost(trainer, validation)
            self._costs = {f"validation_{name}": value for name, value in costs.items()}
        if self._spec.start is not None:
            restore_state(trainer, self._spec.start)

    def evaluated(self, step: int) -> Metrics:
        """Save what a clone needs, before the trial can read of the evaluation in the journal."""
        trainer = self._trainer
        assert trainer is not None
        if self._spec.saves_states and trainer.worker.rank == 0 and step < trainer.total_steps:
            save_state(trainer, state_path(self._spec.trial, step), step)
        return self._costs

    def report(self, step: int, metrics: Metrics) -> None:
        """Tell the trial."""
        if self._report is not None:
            self._report(step, metrics)
