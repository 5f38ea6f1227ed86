"""Runs the training loop as the settings say: in this process, or on Ray Train's workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from headway.cluster import worker_group
from headway.config.training import TrainingConfig
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Metrics
from headway.runs.context import Context
from headway.runs.journal import Entry, JournalFollower, JournalReader, Once, read_journal
from headway.runs.lineage.step_run import step_run
from headway.runs.paths import RunPaths
from headway.runs.system_metrics import SystemMetricsReader
from headway.runs.worker import TrainingJob, selection_of, train_worker
from headway.tracking import Run
from headway.tracking.data_split import DataSplit


@contextmanager
def tracked(config: TrainingConfig, context: Context, data: Sequence[DataSplit]) -> Iterator[Run]:
    """The step's MLflow run, with the rows that it reads; one that an earlier driver began is continued.

    The processes of the training workers start in the meantime.

    Raises:
        ConfigError: the cluster is too small for the workers, or no MLflow server answers.
    """
    if config.workers:
        context.join_cluster(config.min_workers)
        worker_group.start_workers_ahead(config.max_workers)
    with step_run(config, context, data) as run:
        yield run


def run_job(job: TrainingJob, context: Context, run: Run | None, title: str) -> list[Entry]:
    """Train to the end, and show and log metrics as they are measured.

    Afterwards the model is in `model/` of the step's folder.

    Returns:
        The whole journal.

    Raises:
        KeyboardInterrupt: this process received SIGTERM; a state is saved.
    """
    paths = RunPaths.of(job.config, context)
    with _followed(job, paths, context, run, title), _stop_on_sigterm(paths):
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


@contextmanager
def _followed(
    job: TrainingJob, paths: RunPaths, context: Context, run: Run | None, title: str
) -> Iterator[None]:
    """While the block runs, pass on what the workers measure, of the model and of their machines."""
    log = _logger(run)
    away = context.tracking.max_seconds_away
    with ExitStack() as followers:
        receive = _receiver(job, context, log, title)
        followers.enter_context(JournalFollower(JournalReader(paths.journal), receive, away))
        if job.config.system_metrics_interval_s is not None:
            followers.enter_context(JournalFollower(SystemMetricsReader(paths.folder), log, away))
        yield


def _logger(run: Run | None) -> Callable[[list[Entry]], None]:
    """A function that logs each metric of each step once."""
    if run is None:
        return lambda entries: None
    # While training goes on, followers try again by themselves, and can be interrupted.
    direct = run.impatient()
    once = Once(run.logged_steps())
    lock = threading.Lock()

    def log(entries: list[Entry]) -> None:
        with lock:
            new = once.new(entries)
            if new:
                direct.log_metrics([entry[:2] for entry in new], [entry.time for entry in new])
            once.mark(new)

    return log


def _receiver(
    job: TrainingJob, context: Context, log: Callable[[list[Entry]], None], title: str
) -> Callable[[list[Entry]], None]:
    """A function that logs entries and shows them on the screen."""
    total = job.config.total_steps(job.batches()[0])
    shown: Metrics = {}

    def receive(entries: list[Entry]) -> None:
        log(entries)
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
    return chosen_entry(entries, config).metrics


def chosen_entry(entries: list[Entry], config: TrainingConfig) -> Entry:
    """When the model that was kept was measured on the validation rows, and how it scored."""
    selection = selection_of(config)
    measured = [entry for entry in entries if "validation_loss" in entry.metrics]
    if selection is not None and measured:
        # Patience has already done its work: it must not end the replay.
        selection.patience = None
        selection.replay((entry.step, entry.metrics) for entry in measured)
        measured = [entry for entry in measured if entry.step == selection.best_step]
    chosen = measured[-1] if measured else Entry(0, {})
    metrics = {name: value for name, value in chosen.metrics.items() if name.startswith("validation_")}
    return chosen._replace(metrics=metrics)
