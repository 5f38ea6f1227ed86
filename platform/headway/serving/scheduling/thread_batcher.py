"""Short work in a thread, off the event loop: what comes while it is busy goes along in its next turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class _Work(NamedTuple):
    call: Callable[[], Any]
    size: int
    result: asyncio.Future[Any]


class Turns:
    """Calls for one thread, made by one event loop.

    To hand a call over and its result back costs two switches between threads, more than tokenising a short
    text does. In turns, many calls share them.

    Args:
        thread: does one turn after the other.
        most: sizes of the calls of a turn together at most, unless a single one is larger: results come at
            the end of a turn.
    """

    def __init__(self, thread: Executor, most: int) -> None:
        self._thread, self._most = thread, most
        self._waiting: deque[_Work] = deque()
        self._busy = False

    async def run(self, call: Callable[[], _T], size: int) -> _T:
        """The result of a call, in the order in which calls come.

        Raises:
            Exception: whatever the call raised.
        """
        work = _Work(call, size, asyncio.get_running_loop().create_future())
        self._waiting.append(work)
        if not self._busy:
            self._begin()
        result: _T = await work.result
        return result

    def _begin(self) -> None:
        turn = self._next_turn()
        self._busy = bool(turn)
        if turn:
            loop = asyncio.get_running_loop()
            done = loop.run_in_executor(self._thread, _results, turn)
            done.add_done_callback(lambda done: self._end(turn, done.result()))

    def _next_turn(self) -> list[_Work]:
        """What waits and is still wanted, up to the size of a turn."""
        turn: list[_Work] = []
        size = 0
        while self._waiting and (not turn or size + self._waiting[0].size <= self._most):
            work = self._waiting.popleft()
            if not work.result.done():
                turn.append(work)
                size += work.size
        return turn

    def _end(self, turn: list[_Work], results: list[Any]) -> None:
        self._begin()
        for work, result in zip(turn, results, strict=True):
            if work.result.done():  # nobody waits for it any more
                continue
            if isinstance(result, BaseException):
                work.result.set_exception(result)
            else:
                work.result.set_result(result)


def _results(turn: list[_Work]) -> list[Any]:
    """What each call gives, or the exception that it ends in."""
    return [_result(work.call) for work in turn]


def _result(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error
