"""Run the engine's loop where the configuration says: in this process, or on Ray Train's workers."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from headway.cluster import worker_group
from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.data.atomic import atomic_folder, write_atomically
from headway.data.batches import BatchSource
from headway.engine.checkpoint.state_dict import whole_weights
from headway.engine.optimizers.build import use_result_weights, use_training_weights
from headway.engine.parallel.worker import Worker
from headway.engine.training.early_stopping import NoProgress, Selection
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Evaluator, Metrics, Stopped, Trainer
from headway.runs.context import Context
from headway.runs.journal import Entry, Journal, JournalFollower, Once, read_journal
from headway.runs.paths import TrainingPlace
from headway.runs.row_log import RowLog
from headway.tracking import Run

STARTUP = "startup_seconds"
"""From the call of Ray Train's `fit()` to the moment the first training step can begin."""


class TrainingJob(Protocol):
    """What is to be trained; small, since it travels to every worker."""

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


@contextmanager
def tracked(config: TrainingConfig, context: Context) -> Iterator[Run]:
    """The step's MLflow run; one that an earlier driver of this step began is continued.

    Training workers start meanwhile.

    Raises:
        ConfigError: the cluster has no room for the workers, or no server answers.
    """
    if config.workers:
        worker_group.require_workers(config.workers, context.address, context.tracking.uri)
        worker_group.start_workers_ahead(config.most_workers)
    token_file = context.folder / "token"
    if not token_file.exists():
        write_atomically(token_file, uuid.uuid4().hex)
    token = token_file.read_text(encoding="utf-8")
    settings = config.model_dump(mode="json")
    try:
        with context.tracking.run(context.experiment, context.step, settings, token) as run:
            yield run
    except ConfigError:
        token_file.unlink()
        raise


def run_job(job: TrainingJob, context: Context, run: Run | None, title: str) -> list[Entry]:
    """Train to the end, with metrics carried to MLflow and to the screen as they come.

    The model lies in `model/` of the step's folder afterwards.

    Returns:
        Everything measured.

    Raises:
        KeyboardInterrupt: this process was sent SIGTERM; a state is saved.
    """
    place = TrainingPlace.of(job.config, context)
    with JournalFollower(place.journal, _receiver(job, context, run, title)), _stop_on_sigterm(place):
        if job.config.workers == 0:
            train_worker(job, place, Worker(), time.time())
        else:
            worker_group.train_on_workers(
                train_worker, (job, place), job.config.workers, context.folder, place.newest_state
            )
    context.display.settle()
    if place.stop_sign.exists():
        raise KeyboardInterrupt
    return read_journal(place.journal)


def _receiver(
    job: TrainingJob, context: Context, run: Run | None, title: str
) -> Callable[[list[Entry]], None]:
    """What shows entries on the screen and logs each metric of each step once."""
    total = job.config.total_steps(job.batches()[0])
    once = Once(run.logged_steps() if run is not None else {})
    shown: Metrics = {}

    def receive(entries: list[Entry]) -> None:
        new = once.new(entries)
        if run is not None and new:
            run.log_metrics([entry[:2] for entry in new], [entry.time for entry in new])
        once.mark(new)
        for entry in entries:
            shown.update(entry.metrics)
            if entry.note:
                context.display.line(entry.note)
        context.display.training(title, entries[-1].step, total, shown)

    return receive


@contextmanager
def _stop_on_sigterm(place: TrainingPlace) -> Iterator[None]:
    """While the block runs, SIGTERM asks the workers to save their state and stop."""
    place.stop_sign.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, lambda *_: place.stop_sign.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Observer(Protocol):
    """Looks on while a worker trains: a sweep's trial, which is stopped or cloned as others do better."""

    def begin(self, trainer: Trainer, validation: BatchSource | None) -> None:
        """Called once, before the first step, with the validation rows."""
        ...

    def evaluated(self, step: int) -> Metrics:
        """Called after each evaluation, before it is journalled: what else there is to say of the model."""
        ...

    def report(self, step: int, metrics: Metrics) -> None:
        """Called after each report has been journalled."""
        ...


def train_worker(
    job: TrainingJob,
    place: TrainingPlace,
    worker: Worker,
    launched_at: float,
    observer: Observer | None = None,
) -> None:
    """One worker's part; the first one keeps the journal and saves the model.

    Args:
        job: what to train.
        place: where states, journal and model go.
        worker: this process's place among them.
        launched_at: seconds since the epoch when the driver launched the workers.
        observer: looks on; a run with one saves no states, since it starts from scratch if it is cut short.
    """
    # Workers on one machine, and a run that goes on, take the kernels that were compiled already.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place.folder / "compiled"))
    worker = worker.arranged(job.config.parallel)
    first = worker.rank == 0
    history = read_journal(place.journal)

    def keep(step: int) -> None:
        use_result_weights(trainer.optimizer)
        _save_model(job, trainer, place.folder / "best" / f"{step:09d}")
        if first:
            _remove_others(place.folder / "best", f"{step:09d}")
        if step < trainer.total_steps:
            use_training_weights(trainer.optimizer)

    selection = selection_of(job.config, keep)

    def report(info: StepInfo) -> None:
        step, metrics = info.step, info.metrics
        if not metrics:
            return
        if observer is not None and "validation_loss" in metrics:
            metrics |= observer.evaluated(step)
        if first:
            journal.append(step, metrics)
        if observer is not None:
            observer.report(step, metrics)
        if selection is not None:
            selection(step, metrics)

    def stop_if_asked(info: StepInfo) -> None:
        info.stop = worker.is_leaving() or (first and place.stop_sign.exists())

    batches, validation = job.batches()
    if job.config.log_rows:
        batches = RowLog(batches, place.folder / "rows", worker)
    trainer = Trainer(
        job.objective(),
        batches,
        job.config,
        worker=worker,
        checkpoints=None if observer is not None else place.checkpoints(worker, job.config),
    )
    evaluator = job.evaluator(worker)
    if evaluator is None and validation is not None:
        evaluator = partial(
            mean_losses, validation=validation, worker=worker, batch_size=job.config.batch_size
        )
    if evaluator is not None:
        # All trials of a sweep start from the same weights.
        trainer.add_evaluation(evaluator, at_start=observer is None)
    trainer.add_hook(report)
    trainer.add_hook(stop_if_asked)
    if observer is not None:
        observer.begin(trainer, validation)
    if selection is not None:
        selection.replay((e.step, e.metrics) for e in history if 0 < trainer.start_step >= e.step)
    if first:
        journal = Journal(place.journal, trainer.start_step)
        if trainer.start_step == 0:
            journal.append(0, {STARTUP: time.time() - launched_at})
        for note in trainer.restored.notes:
            journal.append(trainer.start_step, {}, note)
    try:
        trainer.run()
    except Stopped:
        if place.stop_sign.exists():
            return
        raise  # a machine leaves: the group starts again on others
    except NoProgress:
        trainer.finish_saving()
    if selection is None:
        _save_model(job, trainer, place.folder / "model")
    elif first and not (place.folder / "model").is_dir():
        (place.folder / "best" / f"{selection.best_step:09d}").rename(place.folder / "model")


def _save_model(job: TrainingJob, trainer: Trainer, folder: Path) -> None:
    """Save the model, whole or not at all; called on every worker, since it may be split over them."""
    worker = trainer.worker
    weights = whole_weights(trainer.objective, worker) if worker.mesh is not None else None
    if worker.rank != 0:
        return
    objective = trainer.objective
    if weights is not None:
        objective = job.objective()
        objective.load_state_dict(weights)
    with atomic_folder(folder) as draft:
        job.save(objective, draft)


def _remove_others(folder: Path, kept: str) -> None:
    for old in folder.iterdir():
        if old.name != kept:
            shutil.rmtree(old, ignore_errors=True)


def selection_of(config: TrainingConfig, keep: Callable[[int], None] = lambda step: None) -> Selection | None:
    """What follows a run's evaluations; None where the last model is the one to keep."""
    if config.best_by is None and config.early_stopping_patience is None:
        return None
    return Selection(config.best_by or "loss", config.early_stopping_patience, keep)


def chosen_metrics(entries: list[Entry], config: TrainingConfig) -> Metrics:
    """What was measured on the validation rows of the model that was kept."""
    selection = selection_of(config)
    measured = [entry for entry in entries if "validation_loss" in entry.metrics]
    if selection is not None and measured:
        # However the run ended, its patience is not asked again.
        selection.patience = None
        selection.replay((entry.step, entry.metrics) for entry in measured)
        measured = [entry for entry in measured if entry.step == selection.best_step]
    metrics = measured[-1].metrics if measured else {}
    return {name: value for name, value in metrics.items() if name.startswith("validation_")}


def last_value(entries: list[Entry], name: str) -> float:
    """The newest value of a metric; not-a-number if it was never measured."""
    return next((entry.metrics[name] for entry in reversed(entries) if name in entry.metrics), float("nan"))


def first_value(entries: list[Entry], name: str) -> float:
    """The oldest value of a metric; not-a-number if it was never measured."""
    return next((entry.metrics[name] for entry in entries if name in entry.metrics), float("nan"))


def median_value(entries: list[Entry], name: str) -> float:
    """The median of all measurements of a metric; not-a-number if it was never measured."""
    values = [entry.metrics[name] for entry in entries if name in entry.metrics]
    return statistics.median(values) if values else float("nan")
