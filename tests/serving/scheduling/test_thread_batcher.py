"""Calls batched for a thread: in order, together, and without harm to each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from headway.serving.scheduling.caller import Caller, DeadlinePassedError
from headway.serving.scheduling.thread_batcher import ThreadBatcher
from waiting import PATIENCE


def caller() -> Caller:
    return Caller.starting_now("someone", PATIENCE)


class CountingThread(ThreadPoolExecutor):
    """One thread that counts what is submitted to it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.submitted = 0

    def submit(self, *arguments, **keywords):
        self.submitted += 1
        return super().submit(*arguments, **keywords)


def while_busy(
    check: Callable[[ThreadBatcher, CountingThread, threading.Event], object], max_size: int = 100
) -> None:
    """Run a check beside a first call that keeps the thread busy until the event is set."""

    async def run() -> None:
        with CountingThread() as thread:
            batcher, go = ThreadBatcher(thread, max_size), threading.Event()
            first = asyncio.create_task(batcher.run(lambda: go.wait(PATIENCE), 1, caller()))
            await asyncio.sleep(0)
            await check(batcher, thread, go)  # type: ignore[misc]
            assert await first

    asyncio.run(run())


def append(numbers: list[Any], number: Any) -> Any:
    numbers.append(number)
    return number


def test_calls_that_arrive_meanwhile_run_together_and_in_order():
    async def check(batcher, thread, go):
        done: list[int] = []
        calls = [asyncio.create_task(batcher.run(partial(append, done, i), 1, caller())) for i in range(20)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*calls) == done == list(range(20))
        assert thread.submitted == 2

    while_busy(check)


def test_a_batch_is_no_larger_than_its_maximum():
    async def check(batcher, thread, go):
        seen: list[tuple[int, int]] = []
        sizes = [5, 5, 3, 50, 10, 1]
        calls = [
            batcher.run(lambda size=s: seen.append((thread.submitted, size)), s, caller()) for s in sizes
        ]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0)
        go.set()
        await waiting
        batches = [[size for number, size in seen if number == t] for t in sorted({t for t, _ in seen})]
        assert batches in ([[5, 5], [3], [50], [10], [1]], [[5, 5], [3], [50], [10, 1]])

    while_busy(check, max_size=10)


def test_a_call_that_fails_or_is_cancelled_harms_no_other():
    async def check(batcher, thread, go):
        def fail() -> None:
            raise ValueError("too long")

        computed: list[str] = []
        failing, leaving, last = (
            asyncio.create_task(batcher.run(call, 1, caller()))
            for call in (fail, lambda: computed.append("left"), lambda: "good")
        )
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(ValueError, match="too long"):
            await failing
        assert await last == "good" and computed == []
        assert await batcher.run(lambda: "again", 1, caller()) == "again"

    while_busy(check)


class Panic(BaseException):
    """What pyo3 raises if code in Rust panics."""


def test_a_panic_fails_its_call_and_hangs_no_other():
    def panic() -> None:
        raise Panic("index out of bounds")

    async def check(batcher, thread, go):
        calls = [asyncio.create_task(batcher.run(call, 1, caller())) for call in (panic, lambda: "beside it")]
        await asyncio.sleep(0)
        go.set()
        failed, beside = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
        assert isinstance(failed, RuntimeError) and "index out of bounds" in str(failed)
        assert beside == "beside it"
        assert await asyncio.wait_for(batcher.run(lambda: "after it", 1, caller()), PATIENCE) == "after it"

    while_busy(check)


def test_short_calls_are_not_behind_all_long_ones_of_another():
    async def check(batcher, thread, go):
        order: list[str] = []
        much, little = (Caller.starting_now(name, PATIENCE) for name in ("much", "little"))
        calls = [batcher.run(partial(append, order, f"long {i}"), 50, much) for i in range(6)]
        calls += [batcher.run(partial(append, order, f"short {i}"), 1, little) for i in range(3)]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0)
        go.set()
        await waiting
        assert order[:4] == ["long 0", "short 0", "short 1", "short 2"]

    while_busy(check)


def test_a_call_that_comes_too_late_is_not_run():
    async def check(batcher, thread, go):
        order: list[str] = []
        with pytest.raises(DeadlinePassedError, match=r"0\.01 s"):
            await batcher.run(partial(append, order, "late"), 1, Caller.starting_now("someone", 0.01))
        go.set()
        assert await batcher.run(lambda: "next", 1, caller()) == "next" and not order

    while_busy(check)
