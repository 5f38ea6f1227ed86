"""The journal of a training run: what its first worker measured, a JSON line a report.

Workers only append to a file; the driver follows it and carries the lines to MLflow and to the screen.
So training never waits for a server, no worker has to import MLflow, and nothing is lost with the driver.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.atomic import write_atomically
from headway.engine.training.trainer import Metrics

_POLL_SECONDS = 0.3
_MOST_SECONDS_BETWEEN_TRIES = 30.0

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What was measured after `step` steps.

    Attributes:
        step: steps done.
        metrics: name → value.
        time: when, in milliseconds since the epoch.
        note: something to tell the user; mostly nothing.
    """

    step: int
    metrics: Metrics
    time: int = 0
    note: str = ""


class Journal:
    """Appends entries to a file, from a step on: what came later is forgotten, it is measured again.

    The file is replaced, not cut: a writer of an earlier start that is not quite dead yet goes on writing
    to a file that nobody reads any more.

    Args:
        path: of the file.
        start_step: steps that the run has behind it; 0 for a run that starts.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        # A run without a state measures its step 0 again, too.
        kept = [entry for entry in read_journal(path) if 0 < start_step >= entry.step]
        write_atomically(path, "".join(_line(entry) for entry in kept))
        self._stream = path.open("a", encoding="utf-8")

    def append(self, step: int, metrics: Metrics, note: str = "") -> None:
        """Add an entry, in one write."""
        self._stream.write(_line(Entry(step, metrics, int(time.time() * 1000), note)))
        self._stream.flush()


def read_journal(path: Path) -> list[Entry]:
    """All whole entries; none where there is no file."""
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
    """Lets each metric of each step through once, also across restarts of workers and of the driver.

    Args:
        logged: the last step that each metric is already logged at.
    """

    def __init__(self, logged: Mapping[str, int]) -> None:
        self._logged = dict(logged)

    def new(self, entries: list[Entry]) -> list[Entry]:
        """What of `entries` is not logged yet; each step in order."""
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
        """Remember that `entries` are logged now."""
        for entry in entries:
            self._logged |= dict.fromkeys(entry.metrics, entry.step)


class JournalReader:
    """Reads what was added to a journal since the last time; a replaced file from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id = 0
        self._offset = 0

    def unread(self) -> list[Entry]:
        """New whole entries, in order; none where there is no file."""
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


class JournalFollower:
    """Hands entries on in order while the block runs and at its end.

    Where `receive` fails, as it does while a server cannot be reached, it is called again with the same
    entries later, and training goes on meanwhile. Only at the end of the block does its error count.
    """

    def __init__(self, path: Path, receive: Callable[[list[Entry]], None]) -> None:
        self._reader = JournalReader(path)
        self._receive = receive
        self._pending: list[Entry] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headway-journal", daemon=True)

    def __enter__(self) -> JournalFollower:
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._hand_on()
        except Exception:
            if error_type is None:
                raise
            logger.warning("what was measured last could not be handed on", exc_info=True)

    def _follow(self) -> None:
        wait = _POLL_SECONDS
        while not self._stop.wait(wait):
            try:
                self._hand_on()
                wait = _POLL_SECONDS
            except Exception:  # whatever the receiver's server raises while it is away
                logger.warning("what was measured cannot be handed on; trying again", exc_info=True)
                wait = min(2 * wait, _MOST_SECONDS_BETWEEN_TRIES)

    def _hand_on(self) -> None:
        self._pending += self._reader.unread()
        if self._pending:
            self._receive(self._pending)
            self._pending = []
