"""How busy the machines of a training run are: each worker measures, the driver passes it on to MLflow.

Like the journal, `system/<rank>.jsonl` in the run's folder is a file that the driver follows, so that workers
need no MLflow. Its steps count the measurements.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headway.config.training import TrainingConfig
from headway.engine.hardware.usage import Usage
from headway.engine.parallel.worker import Worker
from headway.runs.journal import Entry, Journal, JournalReader, read_journal

_PREFIX = "system/"
"""What MLflow begins the names of system metrics with; its pages show them apart."""


@contextmanager
def measured_system(folder: Path, config: TrainingConfig, worker: Worker) -> Iterator[None]:
    """While the block runs, measure this worker's machine if `system_metrics_interval_s` is set."""
    if config.system_metrics_interval_s is None:
        yield
        return
    path = folder / "system" / f"{worker.rank}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = read_journal(path)
    count = earlier[-1].step if earlier else 0
    journal = Journal(path, count)
    usage = Usage([worker.device.index or 0] if worker.device.type == "cuda" else [])
    prefix = _PREFIX + (f"worker_{worker.rank}/" if config.max_workers > 1 else "")
    stop = threading.Event()

    def measure() -> None:
        nonlocal count
        count += 1
        journal.append(count, {f"{prefix}{name}": value for name, value in usage.measure().items()})

    def run(seconds: float) -> None:
        while not stop.wait(seconds):
            measure()

    thread = threading.Thread(target=run, args=[config.system_metrics_interval_s], daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        measure()  # a run that is shorter than the interval has one measurement


class SystemMetricsReader:
    """Reads what the workers of a run measured of their machines since the last call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "system"
        self._readers: dict[Path, JournalReader] = {}

    def unread(self) -> list[Entry]:
        """New entries, worker by worker."""
        for path in sorted(self._folder.glob("*.jsonl")):
            self._readers.setdefault(path, JournalReader(path))
        return [entry for reader in self._readers.values() for entry in reader.unread()]
