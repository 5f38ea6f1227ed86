"""Runs the training loop as the settings say: in this process, or on Ray Train's workers."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headway.cluster import worker_group
from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.data.atomic import write_atomically
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Metrics
from headway.runs.context import Context
from headway.runs.journal import Entry, JournalFollower, Once, read_journal
from headway.runs.paths import RunPaths
from headway.runs.worker import TrainingJob, selection_of, train_worker
from headway.tracking import Run


@contextmanager
def tracked(config: TrainingConfig, context: Context) -> Iterator[Run]:
    """The step's MLflow run; a run that an earlier driver of this step began is continued.

    The processes of the training workers start in the meantime.

    Raises:
        ConfigError: the cluster is too small for the workers, or no MLflow server answers.
    """
    if config.workers:
        context.join_cluster(config.min_workers)
        worker_group.start_workers_ahead(config.max_workers)
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
    """Train to the end, and show and log metrics as they are measured.

    Afterwards the model is in `model/` of the step's folder.

    Returns:
        The whole journal.

    Raises:
        KeyboardInterrupt: this process received SIGTERM; a state is saved.
    """
    paths = RunPaths.of(job.config, context)
    with JournalFollower(paths.journal, _receiver(job, context, run, title)), _stop_on_sigterm(paths):
        if job.config.workers == 0:
            train_worker(job, paths, Worker(), time.time())
        else:
            worker_group.train_on_workers(
                train_worker, (job, paths), job.config.workers, context.folder, paths.newest_state
            )
    context.display.settle()
    if paths.stop_sign.exists():
        raise KeyboardInterrupt
    return read_journal(paths.journal)


def _receiver(
    job: TrainingJob, context: Context, run: Run | None, title: str
) -> Callable[[list[Entry]], None]:
    """A function that shows entries on the screen and logs each metric of each step once."""
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
def _stop_on_sigterm(paths: RunPaths) -> Iterator[None]:
    """While the block runs, SIGTERM asks the workers to save their state and stop."""
    paths.stop_sign.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a signal handler
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: paths.stop_sign.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def chosen_metrics(entries: list[Entry], config: TrainingConfig) -> Metrics:
    """What the model that was kept scored on the validation rows."""
    selection = selection_of(config)
    measured = [entry for entry in entries if "validation_loss" in entry.metrics]
    if selection is not None and measured:
        # Patience has already done its work: it must not end the replay.
        selection.patience = None
        selection.replay((entry.step, entry.metrics) for entry in measured)
        measured = [entry for entry in measured if entry.step == selection.best_step]
    metrics = measured[-1].metrics if measured else {}
    return {name: value for name, value in metrics.items() if name.startswith("validation_")}
