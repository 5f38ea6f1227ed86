"""The journal of a training run: what its first worker measured, one JSON line for each report.

    {"step": 0, "metrics": {"startup_seconds": 4.1}, "time": 1700000000000, "note": ""}
    {"step": 10, "metrics": {"mlm_loss": 9.2, "tokens_per_second": 31e3}, "time": 1700000004000, "note": ""}

The worker only appends to a file; the driver follows the file and passes its lines on to MLflow and the
screen. So training never waits for a server, workers need not import MLflow, and nothing is lost if the
driver dies.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from headway.data.atomic import write_atomically
from headway.engine.training.trainer import Metrics
from headway.tracking.forwarding import Forwarder


class Entry(NamedTuple):
    """What was measured after `step` steps.

    Attributes:
        step: steps done.
        metrics: name → value.
        time: when, in milliseconds since the epoch.
        note: a message to the user; usually empty.
    """

    step: int
    metrics: Metrics
    time: int = 0
    note: str = ""


class Journal:
    """Appends entries to a file. Earlier entries after the start step are dropped: they are measured again.

    The file is replaced, not truncated: a writer of an earlier start that is not dead yet then writes to a
    file that nobody reads.

    Args:
        path: of the file.
        start_step: steps that the run has already done; 0 for a new run.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        # A run without a saved state also measures its step 0 again.
        kept = [entry for entry in read_journal(path) if 0 < start_step >= entry.step]
        write_atomically(path, "".join(_line(entry) for entry in kept))
        self._stream = path.open("a", encoding="utf-8")
        self._last_step = start_step

    def note(self, note: str) -> None:
        """Add a message to the user, at the step of the last entry."""
        self.append(self._last_step, {}, note)

    def append(self, step: int, metrics: Metrics, note: str = "") -> None:
        """Add an entry, in one write."""
        self._last_step = step
        self._stream.write(_line(Entry(step, metrics, int(time.time() * 1000), note)))
        self._stream.flush()


def read_journal(path: Path) -> list[Entry]:
    """All complete entries; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_entry(line) for line in lines]


def last_value(entries: list[Entry], name: str) -> float:
    """The newest value of a metric; NaN if it was never measured."""
    return next((entry.metrics[name] for entry in reversed(entries) if name in entry.metrics), float("nan"))


def first_value(entries: list[Entry], name: str) -> float:
    """The oldest value of a metric; NaN if it was never measured."""
    return next((entry.metrics[name] for entry in entries if name in entry.metrics), float("nan"))


def median_value(entries: list[Entry], name: str) -> float:
    """The median of all values of a metric; NaN if it was never measured."""
    values = [entry.metrics[name] for entry in entries if name in entry.metrics]
    return statistics.median(values) if values else float("nan")


def _line(entry: Entry) -> str:
    return json.dumps(entry._asdict()) + "\n"


def _entry(line: str | bytes) -> Entry:
    row: dict[str, Any] = json.loads(line)
    return Entry(int(row["step"]), row["metrics"], row["time"], row["note"])


class Once:
    """Passes each metric of each step once, also across restarts of the workers and the driver.

    Args:
        logged: the last step for which each metric is already logged.
    """

    def __init__(self, logged: Mapping[str, int]) -> None:
        self._logged = dict(logged)

    def new(self, entries: list[Entry]) -> list[Entry]:
        """The part of `entries` that is not logged yet, in order of steps."""
        logged, new = dict(self._logged), []
        for entry in entries:
            metrics = {
                name: value for name, value in entry.metrics.items() if entry.step > logged.get(name, -1)
            }
            logged |= dict.fromkeys(metrics, entry.step)
            if metrics:
                new.append(entry._replace(metrics=metrics))
        return new

    def mark(self, entries: list[Entry]) -> None:
        """Record that `entries` are logged."""
        for entry in entries:
            self._logged |= dict.fromkeys(entry.metrics, entry.step)


class JournalReader:
    """Reads what was added to a journal since the last call; a replaced file is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = 0
        self._offset = 0

    def unread(self) -> list[Entry]:
        """New complete entries, in order; none if there is no file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            file_id = os.fstat(stream.fileno()).st_ino
            if file_id != self._file_id:
                self._file_id, self._offset = file_id, 0
            stream.seek(self._offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [_entry(line) for line in whole.splitlines()]


class Reader(Protocol):
    """Reads entries as they are written."""

    def unread(self) -> list[Entry]:
        """New entries."""
        ...


class JournalFollower(Forwarder):
    """Passes entries to `receive`, in order, while the block runs and at its end.

    If `receive` raises, it is called again later with the same entries, while training continues; see
    `Forwarder`.

    Args:
        reader: of the journal.
        receive: gets new entries.
        max_seconds_away: how long the end of the block waits for a server that is away.
    """

    def __init__(
        self, reader: Reader, receive: Callable[[list[Entry]], None], max_seconds_away: float = 0.0
    ) -> None:
        super().__init__(self._pass_on, "headway-journal", max_seconds_away=max_seconds_away)
        self._reader = reader
        self._receive = receive
        self._max_seconds_away = max_seconds_away
        self._pending: list[Entry] = []

    def _pass_on(self) -> None:
        self._pending += self._reader.unread()
        if self._pending:
            self._receive(self._pending)
            self._pending = []
