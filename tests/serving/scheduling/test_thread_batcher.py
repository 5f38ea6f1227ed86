"""Work in a thread, in turns: in order, together, and without harm to each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from headway.serving.scheduling.thread_batcher import Turns
from waiting import PATIENCE


class CountingThread(ThreadPoolExecutor):
    """One thread; how often something was handed over to it is counted."""

    def __init__(self) -> None:
        super().__init__(1)
        self.handed_over = 0

    def submit(self, *arguments, **keywords):
        self.handed_over += 1
        return super().submit(*arguments, **keywords)


def in_turns(check: Callable[[Turns, CountingThread, threading.Event], object], most: int = 100) -> None:
    """Run a check beside a first call that keeps the thread busy until it is let go."""

    async def run() -> None:
        with CountingThread() as thread:
            turns, go = Turns(thread, most), threading.Event()
            first = asyncio.create_task(turns.run(lambda: go.wait(PATIENCE), 1))
            await asyncio.sleep(0)
            await check(turns, thread, go)  # type: ignore[misc]
            assert await first

    asyncio.run(run())


def kept(places: list[int], place: int) -> int:
    places.append(place)
    return place


def test_what_comes_meanwhile_is_done_together_and_in_order():
    async def check(turns, thread, go):
        done: list[int] = []
        calls = [asyncio.create_task(turns.run(partial(kept, done, i), 1)) for i in range(20)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*calls) == done == list(range(20))
        assert thread.handed_over == 2

    in_turns(check)


def test_a_turn_is_no_larger_than_it_may_be():
    async def check(turns, thread, go):
        seen: list[tuple[int, int]] = []
        sizes = [5, 5, 3, 50, 10, 1]
        calls = [turns.run(lambda size=s: seen.append((thread.handed_over, size)), s) for s in sizes]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0)
        go.set()
        await waiting
        turn = [[size for number, size in seen if number == t] for t in sorted({t for t, _ in seen})]
        assert turn == [[5, 5], [3], [50], [10], [1]] or turn == [[5, 5], [3], [50], [10, 1]]

    in_turns(check, most=10)


def test_what_fails_or_is_given_up_harms_no_other():
    async def check(turns, thread, go):
        def fail() -> None:
            raise ValueError("too long")

        computed: list[str] = []
        failing, leaving, last = (
            asyncio.create_task(turns.run(call, 1))
            for call in (fail, lambda: computed.append("left"), lambda: "good")
        )
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(ValueError, match="too long"):
            await failing
        assert await last == "good" and computed == []
        assert await turns.run(lambda: "again", 1) == "again"

    in_turns(check)
