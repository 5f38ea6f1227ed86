"""Who works in a run's folder: one driver at a time, on any storage.

Two drivers in one folder would delete each other's states. So each holds `lease.json` there while it works,
which says who it is and changes every few seconds. A driver that finds one refuses to work, unless the other
is dead: its process is gone, if it was on this machine, or the file has not changed for a while. Clocks of
different machines are never compared.

Storage without an atomic way to take a name, such as S3, may in a rare case let two drivers begin. The one
that no longer finds itself in the file at its next beat ends.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from headway.config.base import ConfigError
from headway.engine.checkpoint.storage import Folder

_FILE = "lease.json"
_LOCAL_SETTLE_SECONDS = 0.3
_REMOTE_SETTLE_SECONDS = 2.0

logger = logging.getLogger(__name__)


class LeaseLostError(RuntimeError):
    """Another driver took the folder over, since this one had not shown for a while that it lives."""


class _TakenOver(BaseException):
    """Raised in the thread that holds a lease, wherever it is; no handler of `Exception` keeps it."""


@dataclass(frozen=True)
class Driver:
    """A driver, as the lease names it.

    Attributes:
        token: its own; no other driver has it.
        host: name of its machine.
        machine: what tells machines, and containers on them, apart: their processes' numbers do not mix.
        pid: its process.
        started: when that process started, in the machine's ticks: a later one of the same number is another.
        since: when it took the lease, for people.
        beat: grows while it lives.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    beat: int = 0

    @classmethod
    def this(cls) -> Driver:
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        pid = os.getpid()
        return cls(
            uuid.uuid4().hex, socket.gethostname(), this_machine(), pid, process_start(pid) or "", since
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_gone(self) -> bool | None:
        """Whether its process has ended; None if that cannot be known from here."""
        if not self.started or self.machine != this_machine():
            return None
        return process_start(self.pid) != self.started


class Lease:
    """The right to work in a folder.

    Args:
        folder: of the run.
        beat_seconds: between two signs of life.
        expires_seconds: without one after which a driver counts as dead.
        tell: is told in a line if it has to be waited for whether another driver lives.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        beat_seconds: float = 5.0,
        expires_seconds: float = 30.0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._folder = folder
        self._beat_seconds = beat_seconds
        self._expires_seconds = expires_seconds
        self._tell = tell
        self._settle_seconds = _LOCAL_SETTLE_SECONDS if folder.is_local else _REMOTE_SETTLE_SECONDS
        self._me = Driver.this()
        self._stopped = threading.Event()
        self._lost_to: Driver | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease while the block runs.

        Raises:
            ConfigError: another driver holds it.
            LeaseLostError: another driver took it over meanwhile, which ends the block.
        """
        self._acquire()
        holder = threading.get_ident()
        beating = threading.Thread(target=self._beat, args=(holder,), name="headway-lease", daemon=True)
        beating.start()
        try:
            yield
        except _TakenOver:
            raise LeaseLostError(
                f"{self._folder.address}: another driver has taken over: {self._lost_to}"
            ) from None
        finally:
            self._stopped.set()
            beating.join()
            self._release()

    def _acquire(self) -> None:
        self._folder.create()
        while True:
            content = self._read()
            if content is None:
                if self._take():
                    return
                continue
            holder = _driver(content)
            is_gone = holder.is_gone if holder is not None else None
            if is_gone is None:
                is_gone = self._stays_silent(content, holder)
            if not is_gone:
                raise ConfigError(
                    f"{self._folder.address}: another driver is at work there: {holder}; wait until it ends"
                )
            if self._read() == content and self._write_and_settle():
                return

    def _take(self) -> bool:
        """Take a lease that nobody holds."""
        if self._folder.is_local:
            return self._folder.write_new(_FILE, _content(self._me))
        return self._write_and_settle()

    def _write_and_settle(self) -> bool:
        """Write this driver in, and look a moment later whether another one did the same."""
        self._folder.write(_FILE, _content(self._me))
        time.sleep(self._settle_seconds)
        return self._is_mine(self._read())

    def _stays_silent(self, content: bytes, holder: Driver | None) -> bool:
        """Whether the lease stays the same for as long as it takes to expire."""
        self._tell(f"waiting up to {self._expires_seconds:g} s to see if another driver lives: {holder}")
        deadline = time.monotonic() + self._expires_seconds
        while time.monotonic() < deadline:
            time.sleep(min(self._beat_seconds, self._expires_seconds) / 5)
            if self._read() != content:
                return False
        return True

    def _beat(self, holder: int) -> None:
        while not self._stopped.wait(self._beat_seconds):
            try:
                content = self._read()
                if content is not None and not self._is_mine(content):
                    self._lose(_driver(content), holder)
                    return
                self._me = replace(self._me, beat=self._me.beat + 1)
                self._folder.write(_FILE, _content(self._me))
            except OSError as error:  # storage may be away for a while; the next beat looks again
                logger.warning("%s: no sign of life could be left: %s", self._folder.address, error)

    def _lose(self, other: Driver | None, thread: int) -> None:
        self._lost_to = other
        logger.error("%s: another driver has taken over: %s", self._folder.address, other)
        # Not `interrupt_main`: in a process that a script runs in the background, SIGINT is ignored.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TakenOver))

    def _release(self) -> None:
        try:
            if self._is_mine(self._read()):
                self._folder.remove(_FILE)
        except OSError as error:
            logger.warning("%s: the lease was not given back: %s", self._folder.address, error)

    def _is_mine(self, content: bytes | None) -> bool:
        holder = _driver(content) if content is not None else None
        return holder is not None and holder.token == self._me.token

    def _read(self) -> bytes | None:
        try:
            return self._folder.read(_FILE)
        except FileNotFoundError:
            return None


def _content(driver: Driver) -> bytes:
    return json.dumps(asdict(driver)).encode()


def _driver(content: bytes) -> Driver | None:
    """Who holds a lease; None if it is only half written."""
    try:
        return Driver(**json.loads(content))
    except (ValueError, TypeError):
        return None


def this_machine() -> str:
    """What tells this machine, and this container on it, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in ticks since it booted; None if there is none."""
    try:
        # After the name, which may hold anything, in parentheses: state, parent, …; the start is the 20th.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return None
