"""Who waits for an answer, and until when."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")


class DeadlinePassedError(Exception):
    """The answer did not come within the client's timeout."""


class Caller(NamedTuple):
    """What a request's work carries with it through every queue.

    Attributes:
        name: whose request it is; callers of different names get equal shares. A digest of the client's key,
            or the address of its connection if no keys are needed.
        deadline: when the client stops waiting, by the monotonic clock.
        timeout: seconds from the request's arrival until then.
    """

    name: str
    deadline: float
    timeout: float

    @classmethod
    def starting_now(cls, name: str, timeout: float) -> Caller:
        """Of a request that arrives now."""
        return cls(name, time.monotonic() + timeout, timeout)

    async def wait_for(self, futures: set[asyncio.Future[_T]]) -> None:
        """Wait until all are done.

        Raises:
            DeadlinePassedError: they are not done at the deadline.
        """
        if not futures:
            return
        left = max(0.0, self.deadline - time.monotonic())
        if (await asyncio.wait(futures, timeout=left))[1]:
            raise DeadlinePassedError(f"no answer within {self.timeout:g} s")
