"""Ctrl-C while Ray Tune works: its own handler ends all trials, and then the sweep as if it were done."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

_MAX_SIGNALS = 4096


@contextlib.contextmanager
def raised_after_cleanup() -> Iterator[None]:
    """Raise a KeyboardInterrupt at the end of the block if there was a SIGINT, whoever handled it.

    Ray Tune ends its actors when one comes, which an exception in the middle of its loop would leave behind,
    and returns. Unless one comes, it keeps its handler, which would swallow the next one: it is put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    handler = signal.getsignal(signal.SIGINT)
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        # Python writes the number of each signal that it handles there.
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            signal.signal(signal.SIGINT, handler)
        with contextlib.suppress(BlockingIOError):
            if signal.SIGINT in reader.recv(_MAX_SIGNALS):
                raise KeyboardInterrupt
