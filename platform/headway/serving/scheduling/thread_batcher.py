"""Short calls in a thread, off the event loop, in batches: what arrives while one runs is in the next."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.fair_share import FairClock

_T = TypeVar("_T")


class _Work(NamedTuple):
    order: tuple[float, int]  # by `FairClock`, then by arrival
    call: Callable[[], Any]
    size: int
    result: asyncio.Future[Any]
    arrived: float


class _Done(NamedTuple):
    result: Any
    started: float
    ended: float


class ThreadBatcher:
    """Runs the calls of one event loop in one thread.

    Passing a call to a thread and its result back costs two switches between threads, more than tokenizing a
    short text does. The calls of a batch share them. Callers get equal shares of the thread: long calls of
    one do not keep the short ones of others waiting.

    Args:
        thread: runs one batch after the other.
        max_size: of a batch, the sum of its calls' sizes, unless one call alone is larger. All results of a
            batch come at its end.
        on_call: called after every call with the seconds that it waited and that it took.
    """

    def __init__(
        self,
        thread: Executor,
        max_size: int,
        on_call: Callable[[float, float], None] = lambda waited, took: None,
    ) -> None:
        self._thread, self._max_size, self._on_call = thread, max_size, on_call
        self._waiting: list[_Work] = []  # a heap
        self._clock = FairClock()
        self._numbers = itertools.count()
        self._busy = False

    async def run(self, call: Callable[[], _T], size: int, caller: Caller) -> _T:
        """The result of a call. Those of one caller run in the order in which they arrive.

        Raises:
            DeadlinePassedError: the caller's deadline has passed.
            Exception: whatever the call raises.
            RuntimeError: the call raised something else, such as a panic of a library written in Rust.
        """
        order = (self._clock.start(caller.name, size), next(self._numbers))
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, _Work(order, call, size, result, time.monotonic()))
        if not self._busy:
            self._start_batch()
        try:
            await caller.wait_for({result})
        finally:
            result.cancel()  # nobody waits for it any longer, if it is not there
        return result.result()

    def _start_batch(self) -> None:
        batch = self._next_batch()
        self._busy = bool(batch)
        if batch:
            loop = asyncio.get_running_loop()
            done = loop.run_in_executor(self._thread, _results, batch)
            done.add_done_callback(lambda done: self._end_batch(batch, done.result()))

    def _next_batch(self) -> list[_Work]:
        """What waits and is still wanted, up to the size of a batch."""
        batch: list[_Work] = []
        size = 0
        while self._waiting and (not batch or size + self._waiting[0].size <= self._max_size):
            work = heapq.heappop(self._waiting)
            self._clock.advance(work.order[0])
            if not work.result.done():
                batch.append(work)
                size += work.size
        return batch

    def _end_batch(self, batch: list[_Work], results: list[_Done]) -> None:
        self._start_batch()
        for work, (result, started, ended) in zip(batch, results, strict=True):
            self._on_call(started - work.arrived, ended - started)
            if work.result.done():  # its caller was cancelled
                continue
            if isinstance(result, BaseException):
                work.result.set_exception(result)
            else:
                work.result.set_result(result)


def _results(batch: list[_Work]) -> list[_Done]:
    """The result of each call, or the exception that it raised."""
    return [_result(work.call) for work in batch]


def _result(call: Callable[[], Any]) -> _Done:
    started = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    except BaseException as error:
        # A panic of a library in Rust, such as the tokenizer, is no `Exception`. It would end the batch
        # without results, and the caller's task past everything that answers errors.
        result = RuntimeError(f"{type(error).__name__}: {error}")
    return _Done(result, started, time.monotonic())
