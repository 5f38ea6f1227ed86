"""The journal of a training run: what its first worker measured, a JSON line a report.

Workers only append to a file; the driver follows it and carries the lines to MLflow and to the screen.
So training never waits for a server, no worker has to import MLflow, and nothing is lost with the driver.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from headway.engine.trainer import Metrics

_POLL_SECONDS = 0.3


class Entry(NamedTuple):
    """What was measured after `step` steps."""

    step: int
    metrics: Metrics


class Journal:
    """Appends entries; one writer at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, metrics: Metrics) -> None:
        """Add an entry, in one write."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, "metrics": metrics}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: a resumed run measures it again."""
        kept = [entry for entry in read_journal(self.path) if entry.step <= step]
        self.path.write_text("".join(json.dumps(entry._asdict()) + "\n" for entry in kept), encoding="utf-8")


def read_journal(path: Path) -> list[Entry]:
    """All whole entries; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_entry(json.loads(line)) for line in lines]


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(int(row["step"]), row["metrics"])


class JournalFollower:
    """Hands each new entry on, in order and once, while the block runs and at its end."""

    def __init__(self, path: Path, receive: Callable[[list[Entry]], None]) -> None:
        self._path = path
        self._receive = receive
        # What an earlier run of the same step left was handed on by that run.
        self._last_step = max((entry.step for entry in read_journal(path)), default=-1)
        self._offset = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="headway-journal", daemon=True)

    def __enter__(self) -> JournalFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        new = [entry for entry in self._unread() if entry.step > self._last_step]
        if new:
            self._last_step = new[-1].step
            self._receive(new)

    def _unread(self) -> list[Entry]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            if stream.seek(0, 2) < self._offset:  # rewound by a resumed run: read it all again
                self._offset = 0
            stream.seek(self._offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [_entry(json.loads(line)) for line in whole.splitlines()]
