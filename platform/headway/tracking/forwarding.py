"""Hands on what was measured while work goes on, and patiently: a server that is away ends nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from headway.redaction import redacted
from headway.tracking.outage import is_outage

_MAX_RETRY_SECONDS = 30.0
_REST = 9.0
"""Seconds of rest for each second of handing on, which leaves the interpreter to the driver's other work."""

_AGAIN = "measurements cannot be logged; trying again: %s"

logger = logging.getLogger(__name__)


class Forwarder:
    """Calls `forward` again and again in a thread while the block runs, and once more at its end.

    If `forward` raises, as it does while a server cannot be reached, it is called again, after longer and
    longer pauses. So it must keep what it could not hand on. Its error is raised only at the block's end.

    Args:
        forward: hands on what is new.
        name: of the thread.
        pause: seconds between two calls, at least.
        max_seconds_away: how long the end of a block that succeeded waits for a server that is away.
    """

    def __init__(
        self, forward: Callable[[], None], name: str, pause: float = 0.3, max_seconds_away: float = 0.0
    ) -> None:
        self._forward = forward
        self._pause = pause
        self._max_seconds_away = max_seconds_away
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + (self._max_seconds_away if error_type is None else 0.0)
        wait = self._pause
        while True:
            try:
                self._forward()
                return
            except Exception as failure:
                if is_outage(failure) and time.monotonic() + wait < deadline:
                    logger.warning(_AGAIN, redacted(failure))
                elif error_type is None:
                    raise
                else:
                    logger.warning("the last measurements could not be logged: %s", redacted(failure))
                    return
            time.sleep(wait)
            wait = min(2 * wait, _MAX_RETRY_SECONDS)

    def _run(self) -> None:
        wait = self._pause
        while not self._stop.wait(wait):
            started = time.monotonic()
            try:
                self._forward()
                wait = max(self._pause, _REST * (time.monotonic() - started))
            except Exception as error:  # whatever the client of an unreachable server raises
                logger.warning(_AGAIN, redacted(error))
                wait = min(2 * wait, _MAX_RETRY_SECONDS)
