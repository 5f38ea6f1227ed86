"""One worker's part of a training run: set up, train, and keep what was made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from headway.config.training import TrainingConfig
from headway.data.atomic import atomic_folder
from headway.data.batches import BatchSource
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.state_dict import whole_weights
from headway.engine.optimizers.build import use_result_weights, use_training_weights
from headway.engine.parallel.worker import Worker
from headway.engine.training.early_stopping import NoProgress, Selection
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Evaluator, Metrics, Stopped, Trainer
from headway.runs.journal import Journal, read_journal
from headway.runs.paths import RunPaths
from headway.runs.row_log import RowLog
from headway.runs.system_metrics import measured_system

STARTUP = "startup_seconds"
"""From the call of Ray Train's `fit()` to the moment the first training step can begin."""


class TrainingJob(Protocol):
    """What is trained; small, since it is sent to every worker."""

    @property
    def config(self) -> TrainingConfig:
        """Length, optimizer, precision and the rest."""
        ...

    def objective(self) -> nn.Module:
        """The model with its losses, the same on every worker."""
        ...

    def batches(self) -> tuple[BatchSource, BatchSource | None]:
        """Training and validation batches."""
        ...

    def evaluator(self, worker: Worker) -> Evaluator | None:
        """What measures the model on the validation rows; None for mean losses and accuracies."""
        ...

    def save(self, objective: nn.Module, folder: Path) -> None:
        """Write the trained model into an existing, empty folder."""
        ...


class Observer(Protocol):
    """Watches a worker train: a trial of a sweep, which may be stopped or cloned."""

    @property
    def seconds_between_states(self) -> float | None:
        """At least so many seconds are between two saved states; None if the observer saves its own."""
        ...

    def begin(self, trainer: Trainer, validation: BatchSource | None) -> None:
        """Called once, before the first step, with the validation rows."""
        ...

    def evaluated(self, step: int) -> Metrics:
        """Called after each evaluation, before it is journalled; returns what to add to the metrics."""
        ...

    def report(self, step: int, metrics: Metrics) -> None:
        """Called after each report has been journalled."""
        ...


def train_worker(
    job: TrainingJob,
    paths: RunPaths,
    worker: Worker,
    launched_at: float,
    observer: Observer | None = None,
) -> None:
    """Do one worker's part of a run; the first worker writes the journal and saves the model.

    Args:
        job: what to train.
        paths: where states, journal and model go.
        worker: which of the workers this process is.
        launched_at: when the driver launched the workers, in seconds since the epoch.
        observer: watches, and says how often states are saved.

    Raises:
        Stopped: a machine is leaving; the group starts again on the others.
    """
    training = _Training(job, paths, worker.arranged(job.config.parallel), observer)
    with measured_system(paths.folder, job.config, worker):
        training.set_up(launched_at)
        if training.run():
            training.keep_model()


class _Training:
    """A worker's trainer, and what receives its reports.

    Only the first worker has a journal, and only a run that selects among its models has a selection.
    """

    def __init__(self, job: TrainingJob, paths: RunPaths, worker: Worker, observer: Observer | None) -> None:
        # Workers on one machine, and a resumed run, reuse the kernels that were already compiled.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.folder / "compiled"))
        self._job = job
        self._paths = paths
        self._observer = observer
        self._is_first = worker.rank == 0
        self._journal: Journal | None = None
        self._selection = selection_of(job.config, self._keep_best)
        batches, self._validation = job.batches()
        if job.config.log_rows:
            batches = RowLog(batches, paths.folder / "rows", worker)
        self._trainer = Trainer(
            job.objective(),
            batches,
            job.config,
            worker=worker,
            checkpoints=_checkpoints(job, paths, worker, observer),
        )
        evaluator = job.evaluator(worker)
        if evaluator is None and self._validation is not None:
            evaluator = partial(
                mean_losses, validation=self._validation, worker=worker, batch_size=job.config.batch_size
            )
        if evaluator is not None:
            # All trials of a sweep start from the same weights.
            self._trainer.add_evaluation(evaluator, at_start=observer is None)
        self._trainer.add_hook(self._report)
        self._trainer.add_hook(self._stop_if_asked)

    def set_up(self, launched_at: float) -> None:
        """Restore what an earlier start of the run left, and open the journal."""
        trainer = self._trainer
        if self._observer is not None:
            self._observer.begin(trainer, self._validation)
        if self._selection is not None:
            history = read_journal(self._paths.journal)
            self._selection.replay((e.step, e.metrics) for e in history if 0 < trainer.start_step >= e.step)
        if self._is_first:
            self._journal = Journal(self._paths.journal, trainer.start_step)
            if trainer.start_step == 0:
                self._journal.append(0, {STARTUP: time.time() - launched_at})
            for note in trainer.restored.notes:
                self._journal.note(note)
            if trainer.checkpoints is not None:
                trainer.checkpoints.warn = self._journal.note

    def run(self) -> bool:
        """Train; returns whether training reached its end, rather than being stopped by the user."""
        try:
            self._trainer.run()
        except Stopped:
            if self._paths.stop_sign.exists():
                return False
            raise
        except NoProgress:
            self._trainer.finish_saving()
        return True

    def keep_model(self) -> None:
        """Put the last model, or the best one, into `model/`; called on every worker."""
        target = self._paths.folder / "model"
        if self._selection is None:
            self._save_model(target)
        elif self._is_first and not target.is_dir():
            self._best_folder(self._selection.best_step).rename(target)

    def _report(self, info: StepInfo) -> None:
        step, metrics = info.step, info.metrics
        if not metrics:
            return
        if self._observer is not None and "validation_loss" in metrics:
            metrics |= self._observer.evaluated(step)
        if self._journal is not None:
            self._journal.append(step, metrics)
        if self._observer is not None:
            self._observer.report(step, metrics)
        if self._selection is not None:
            self._selection(step, metrics)

    def _stop_if_asked(self, info: StepInfo) -> None:
        info.stop = self._trainer.worker.is_leaving() or (self._is_first and self._paths.stop_sign.exists())

    def _keep_best(self, step: int) -> None:
        """Save the new best model in place of the one before."""
        trainer = self._trainer
        use_result_weights(trainer.optimizer)
        self._save_model(self._best_folder(step))
        if self._is_first:
            _remove_others(self._best_folder(step))
        if step < trainer.total_steps:
            use_training_weights(trainer.optimizer)

    def _best_folder(self, step: int | None) -> Path:
        return self._paths.folder / "best" / f"{step:09d}"

    def _save_model(self, folder: Path) -> None:
        """Save the model atomically; called on every worker, since the model may be split over them."""
        objective, worker = self._trainer.objective, self._trainer.worker
        weights = whole_weights(objective, worker) if worker.mesh is not None else None
        if not self._is_first:
            return
        if weights is not None:
            objective = self._job.objective()
            objective.load_state_dict(weights)
        with atomic_folder(folder) as draft:
            self._job.save(objective, draft)


def _checkpoints(
    job: TrainingJob, paths: RunPaths, worker: Worker, observer: Observer | None
) -> Checkpoints | None:
    seconds = 0.0 if observer is None else observer.seconds_between_states
    return None if seconds is None else paths.checkpoints(worker, job.config, seconds)


def _remove_others(kept: Path) -> None:
    for folder in kept.parent.iterdir():
        if folder.name != kept.name:
            shutil.rmtree(folder, ignore_errors=True)


def selection_of(config: TrainingConfig, keep: Callable[[int], None] = lambda step: None) -> Selection | None:
    """What picks the best of a run's models; None if the last one is kept."""
    if config.best_by is None and config.early_stopping_patience is None:
        return None
    return Selection(config.best_by or "loss", config.early_stopping_patience, keep)
