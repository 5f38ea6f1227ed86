"""Run the engine's loop where the configuration says: in this process, or on Ray Train's workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from torch import nn

from headway import cluster
from headway.config import TrainingConfig
from headway.data.atomic import atomic_folder
from headway.data.batches import BatchSource
from headway.engine.parallel import Worker
from headway.engine.trainer import Metrics, Trainer
from headway.steps.context import Context
from headway.steps.journal import Entry, Journal, JournalFollower, read_journal
from headway.tracking import Run

STARTUP = "startup_seconds"
"""From the driver's call to the moment the first training step can begin, on the first worker."""


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

    def save(self, objective: nn.Module, folder: Path) -> None:
        """Write the trained model into an existing, empty folder."""
        ...


def run_job(job: TrainingJob, context: Context, run: Run | None, title: str) -> list[Entry]:
    """Train to the end, with metrics carried to MLflow and to the screen as they come.

    The model lies in `model/` of the step's folder afterwards.

    Returns:
        Everything measured.
    """
    journal = context.folder / "journal.jsonl"
    total = job.config.total_steps(job.batches()[0].rows)
    shown: Metrics = {}
    started = context.display.now()

    def receive(entries: list[Entry]) -> None:
        if run is not None:
            run.log_metrics(list(entries))
        for entry in entries:
            shown.update(entry.metrics)
        context.display.training(title, entries[-1].step, total, shown, started)

    with JournalFollower(journal, receive):
        launched_at = time.time()
        if job.config.workers == 0:
            train_worker(job, context.folder, Worker(), launched_at)
        else:
            cluster.connect(context.address, context.tracking.uri)
            cluster.train_on_workers(
                train_worker, (job, context.folder.resolve()), job.config.workers, context.folder, launched_at
            )
    context.display.settle()
    return read_journal(journal)


def train_worker(job: TrainingJob, folder: Path, worker: Worker, launched_at: float) -> None:
    """One worker's part; the first one keeps the journal and saves the model.

    Args:
        job: what to train.
        folder: of the step, the same for all workers: on storage they share.
        worker: this process's place among them.
        launched_at: seconds since the epoch when the driver started the job.
    """
    journal = Journal(folder / "journal.jsonl")
    first = worker.rank == 0

    def report(step: int, metrics: Metrics) -> None:
        if first and metrics:
            journal.append(step, metrics)

    batches, validation = job.batches()
    trainer = Trainer(
        job.objective(),
        batches,
        job.config,
        validation=validation,
        worker=worker,
        state_folder=folder / "state",
        report=report,
    )
    if first and journal.path.exists():
        journal.rewind(trainer.start_step)
    report(trainer.start_step, {STARTUP: time.time() - launched_at})
    trainer.run()
    if first:
        with atomic_folder(folder / "model") as draft:
            job.save(trainer.objective, draft)


def last_value(entries: list[Entry], name: str) -> float:
    """The newest value of a metric; not-a-number if it was never measured."""
    return next((entry.metrics[name] for entry in reversed(entries) if name in entry.metrics), float("nan"))


def first_value(entries: list[Entry], name: str) -> float:
    """The oldest value of a metric; not-a-number if it was never measured."""
    return next((entry.metrics[name] for entry in entries if name in entry.metrics), float("nan"))
