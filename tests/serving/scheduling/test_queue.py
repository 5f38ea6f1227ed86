"""The queue by its own rules: order, budget, sharing, withdrawal, fullness, cache."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from headway.inference.packing import TokenSequence
from headway.serving.scheduling.caller import Caller, DeadlinePassedError
from headway.serving.scheduling.queue import QueueFullError, TokenQueue


def sequence(length: int, fill: int = 0) -> TokenSequence:
    return TokenSequence(np.full(length, fill, np.int32), np.zeros(length, np.uint8))


def serve(queue: TokenQueue) -> list[int]:
    """Answer the next pack with each sequence's sum; returns the lengths that were in it."""
    jobs = queue.take()
    for job in jobs:
        queue.finish(job, int(job.sequence.ids.sum()))
    return [job.tokens for job in jobs]


def caller(name: str = "someone", seconds: float = 5.0) -> Caller:
    return Caller.starting_now(name, seconds)


async def ask(
    queue: TokenQueue, *sequences: TokenSequence, kind: str = "a", name: str = "someone", **options
):
    task = asyncio.create_task(queue.compute(kind, sequences, caller(name), **options))
    await asyncio.sleep(0)
    return task


async def done(*tasks):
    """The tasks, once those have run on whose results there are."""
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_packs_hold_what_came_first_up_to_the_budget():
    async def run():
        queue = TokenQueue(pack_tokens=10, max_tokens=1000)
        tasks = [await ask(queue, sequence(n, n)) for n in (4, 5, 3, 12, 1)]
        assert queue.waiting_tokens == 25
        assert [serve(queue) for _ in range(4)] == [[4, 5], [3], [12], [1]]
        assert await asyncio.gather(*tasks) == [[16], [25], [9], [144], [1]]
        assert queue.waiting_tokens == 0 and queue.take() == []

    asyncio.run(run())


def test_a_pack_is_of_one_kind_and_the_oldest_kind_goes_first():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        for length, kind in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
            await ask(queue, sequence(length, 1), kind=kind)
        assert [serve(queue), serve(queue)] == [[1, 3], [2, 4]]

    asyncio.run(run())


def test_equal_sequences_in_flight_are_computed_once():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        first = await ask(queue, sequence(3, 2), sequence(3, 2))
        jobs = queue.take()
        second = await ask(queue, sequence(3, 2))
        assert len(jobs) == 1 and queue.take() == []
        queue.finish(jobs[0], "answer")
        assert await first == ["answer"] * 2 and await second == ["answer"]
        third = await ask(queue, sequence(3, 2))
        assert serve(queue) == [3] and await third == [6]

    asyncio.run(run())


def test_nobody_computes_for_a_client_that_has_gone():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        gone, stays = await ask(queue, sequence(5), sequence(7, 1)), await ask(queue, sequence(7, 1))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert queue.waiting_tokens == 7
        assert serve(queue) == [7] and await stays == [7]

    asyncio.run(run())


def test_a_passed_deadline_is_told_and_the_work_dropped():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        with pytest.raises(DeadlinePassedError, match=r"0\.01 s"):
            await queue.compute("a", [sequence(5)], caller(seconds=0.01))
        assert queue.take() == [] and queue.waiting_tokens == 0

    asyncio.run(run())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async def run():
        queue = TokenQueue(pack_tokens=10, max_tokens=20, tokens_per_second=5.0)
        await ask(queue, sequence(10))
        with pytest.raises(QueueFullError) as refusal:
            await queue.compute("a", [sequence(6, 1)], caller("another"))
        assert refusal.value.retry_after == 2
        assert queue.waiting_tokens == 10
        await ask(queue, sequence(5, 1), name="another")
        assert queue.waiting_tokens == 15

    asyncio.run(run())


def test_one_caller_fills_no_more_than_half_of_the_queue():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        assert queue.request_limit == 500
        with pytest.raises(QueueFullError):
            await queue.compute("a", [sequence(501)], caller())  # though nothing waits
        await ask(queue, sequence(500))
        with pytest.raises(QueueFullError):
            await queue.compute("a", [sequence(1, 1)], caller())
        await ask(queue, sequence(250, 2), name="another")
        await ask(queue, sequence(125, 3), name="a third")
        assert queue.waiting_tokens == 875

    asyncio.run(run())


def test_few_small_requests_are_not_behind_all_of_a_large_one():
    async def run():
        queue = TokenQueue(pack_tokens=2048, max_tokens=100_000)
        large = await ask(queue, *(sequence(512, i) for i in range(40)), name="much")
        assert serve(queue) == [512] * 4
        small = [await ask(queue, sequence(9, 100 + i), name=f"little {i}") for i in range(3)]
        # The large one gets its share of the pack, and no more.
        assert sorted(serve(queue)) == [9, 9, 9, 512]
        assert all(task.done() for task in await done(*small)) and not large.done()

    asyncio.run(run())


def test_a_small_request_is_not_spread_over_packs():
    async def run():
        queue = TokenQueue(pack_tokens=400, max_tokens=10_000)
        tasks = [
            await ask(queue, *(sequence(100, 4 * i + k) for k in range(4)), name=str(i)) for i in range(5)
        ]
        for task in tasks:
            assert not task.done()
            assert serve(queue) == [100] * 4
            await done(task)
            assert task.done()

    asyncio.run(run())


def test_a_kind_that_one_caller_fills_does_not_keep_other_kinds_waiting():
    async def run():
        queue = TokenQueue(pack_tokens=600, max_tokens=100_000)
        await ask(queue, *(sequence(600, i) for i in range(20)), kind="a", name="much")
        assert serve(queue) == [600]
        await ask(queue, sequence(7), kind="b", name="little")
        assert [serve(queue), serve(queue)] in ([[7], [600]], [[600], [7]])

    asyncio.run(run())


def test_what_a_small_request_shares_with_a_large_one_does_not_wait_for_the_rest_of_that():
    async def run():
        queue = TokenQueue(pack_tokens=600, max_tokens=100_000)
        await ask(queue, *(sequence(600, i) for i in range(20)), name="much")
        await ask(queue, sequence(600, 19), name="little")
        assert queue._waiting.held() == {"much": 19 * 600, "little": 600}
        assert serve(queue) == [600]
        (item,) = queue.take()
        assert item.sequence.ids[0] == 19 and queue.waiting_tokens == 18 * 600
        queue.finish(item, 0)
        assert [serve(queue) for _ in range(19)] == [[600]] * 18 + [[]]
        assert queue.waiting_tokens == 0

    asyncio.run(run())


def test_a_caller_alone_gets_whole_packs():
    async def run():
        queue = TokenQueue(pack_tokens=4096, max_tokens=100_000)
        await ask(queue, *(sequence(512, i) for i in range(16)))
        assert queue.holds_pack() and serve(queue) == [512] * 8

    asyncio.run(run())


def test_a_failed_pack_that_nobody_waits_for_takes_no_space():
    async def run():
        queue = TokenQueue(pack_tokens=20, max_tokens=36)  # one caller gets half of it
        gone = await ask(queue, sequence(15))
        jobs = queue.take()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        queue.put_back(jobs)
        assert queue.waiting_tokens == 0
        stays = await ask(queue, sequence(18, 1))
        assert serve(queue) == [18] and await stays == [18]
        assert queue.waiting_tokens == 0 and not queue.work_waits.is_set()

    asyncio.run(run())


def test_jobs_of_a_failed_pack_keep_their_place_and_go_alone_the_third_time():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        tasks = [await ask(queue, sequence(n, n)) for n in (1, 2)]
        jobs = queue.take()
        tasks.append(await ask(queue, sequence(3, 3)))
        queue.put_back(jobs)
        jobs = queue.take()
        assert [job.tokens for job in jobs] == [1, 2, 3]
        queue.put_back(jobs[:2])
        assert [serve(queue), serve(queue)] == [[1], [2]]
        queue.finish(jobs[2], 9)
        assert await asyncio.gather(*tasks) == [[1], [4], [9]]

    asyncio.run(run())


def test_the_cache_answers_and_forgets_what_was_used_least_lately():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000, cache_size=2)

        async def computed(fill: int) -> bool:
            task = await ask(queue, sequence(2, fill), cached=True)
            missed = serve(queue) == [2]
            assert await task == [2 * fill]
            return missed

        assert [await computed(fill) for fill in (1, 2, 1, 3, 1, 2)] == [True, True, False, True, False, True]

    asyncio.run(run())


def test_the_cache_keeps_a_vector_and_not_the_pack_that_it_came_from():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000, cache_size=8)

        async def computed() -> weakref.ref:
            task = await ask(queue, sequence(2), cached=True)
            pack = np.ones((1000, 4), np.float32)
            (item,) = queue.take()
            queue.finish(item, pack[0])
            await task
            return weakref.ref(pack)

        pack = await computed()
        await asyncio.sleep(0)  # the loop lets go of the task
        gc.collect()
        assert pack() is None
        assert (await (await ask(queue, sequence(2), cached=True)))[0].tolist() == [1.0] * 4

    asyncio.run(run())


def test_tokens_are_unanswered_while_they_wait_and_while_they_are_computed():
    async def run():
        queue = TokenQueue(pack_tokens=10, max_tokens=1000)
        tasks = [await ask(queue, sequence(n, n)) for n in (6, 5, 4)]
        assert queue.unanswered_tokens == 15
        first, second = queue.take(), queue.take()
        assert (queue.waiting_tokens, queue.unanswered_tokens) == (0, 15)
        queue.put_back(second)  # its replica was lost
        assert (queue.waiting_tokens, queue.unanswered_tokens) == (9, 15)
        queue.finish(first[0], "answer")
        assert queue.unanswered_tokens == 9
        serve(queue)
        assert queue.unanswered_tokens == 0
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_a_full_queue_tells_a_person_when_to_come_back():
    assert str(QueueFullError(7)) == "the queue is full; try again in 7 s"


def test_results_are_kept_only_for_those_who_ask_for_that():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000, cache_size=8)
        for _ in range(2):
            task = await ask(queue, sequence(2, 5))
            assert serve(queue) == [2] and await task == [10]
        kept = await ask(queue, sequence(2, 5), cached=True)
        assert serve(queue) == [2] and await kept == [10]
        assert await (await ask(queue, sequence(2, 5), cached=True)) == [10]
        again = await ask(queue, sequence(2, 5))
        assert serve(queue) == [2] and await again == [10]

    asyncio.run(run())


def test_without_a_cache_nothing_is_kept():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        for _ in range(2):
            task = await ask(queue, sequence(2, 5), cached=True)
            assert serve(queue) == [2] and await task == [10]

    asyncio.run(run())


def test_a_pack_may_be_asked_to_be_smaller_but_not_larger():
    async def run():
        queue = TokenQueue(pack_tokens=8, max_tokens=1000)
        await ask(queue, *(sequence(2, i) for i in range(20)))
        assert queue.holds_pack(4) and queue.holds_pack(100)
        assert [sum(job.tokens for job in queue.take(limit)) for limit in (4, 100, 8, None)] == [4, 8, 8, 8]
        assert queue.waiting_tokens == 12
        queue.take()
        assert queue.waiting_tokens == 4 and not queue.holds_pack() and queue.holds_pack(4)

    asyncio.run(run())


def test_a_caller_that_has_gone_leaves_its_share_to_the_others(monkeypatch):
    now = 100.0
    monkeypatch.setattr("headway.serving.scheduling.fair_share.time", SimpleNamespace(monotonic=lambda: now))

    async def run():
        nonlocal now
        queue = TokenQueue(pack_tokens=2048, max_tokens=100_000)
        done_soon = await ask(queue, sequence(9), name="gone")
        assert serve(queue) == [9]
        await done(done_soon)
        await ask(queue, *(sequence(512, i) for i in range(10)))
        assert serve(queue) == [512] * 2, "it may ask again at once"
        now += 1.1
        assert serve(queue) == [512] * 4

    asyncio.run(run())


def test_what_nobody_waited_for_is_computed_for_the_next_who_asks():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        gone = await ask(queue, sequence(5, 2))
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert queue.take() == []
        later = await ask(queue, sequence(5, 2))
        assert serve(queue) == [5] and await later == [10]

    asyncio.run(run())


def test_a_sequence_tells_how_long_it_waited_the_first_time_it_is_sent(monkeypatch):
    stages = []

    async def run():
        queue = TokenQueue(100, 1000, on_stage=lambda stage, seconds: stages.append((stage, seconds)))
        await ask(queue, sequence(5))
        (item,) = queue._unfinished.values()
        item.arrived = 50.0
        clock = SimpleNamespace(monotonic=lambda: 53.0)
        monkeypatch.setattr("headway.serving.scheduling.queue.time", clock)
        queue.put_back(queue.take())
        clock.monotonic = lambda: 60.0
        queue.take()

    asyncio.run(run())
    assert stages == [("queue", 3.0)]


def test_a_pack_put_back_waits_for_its_callers_again():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        one = await ask(queue, sequence(5), name="one")
        await ask(queue, sequence(7, 1), name="other")
        queue.put_back(queue.take())
        assert queue._waiting.held() == {"one": 5, "other": 7}
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert queue._waiting.held() == {"other": 7}
        await ask(queue, sequence(7, 1), name="a third")  # for the same work
        assert queue.waiting_tokens == 7 and serve(queue) == [7]
        assert queue.waiting_tokens == 0

    asyncio.run(run())


def test_an_exception_reaches_all_who_wait():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000)
        tasks = [await ask(queue, sequence(5)) for _ in range(2)]
        (item,) = queue.take()
        queue.finish(item, ValueError("cannot compute this"))
        for task in await done(*tasks):
            with pytest.raises(ValueError, match="cannot compute this"):
                await task
        again = await ask(queue, sequence(5))
        assert serve(queue) == [5] and await again == [0]

    asyncio.run(run())


def test_a_caller_that_comes_late_does_not_catch_up_on_what_others_had_before():
    """From then on, both get about as much."""

    async def run():
        queue = TokenQueue(pack_tokens=600, max_tokens=100_000)
        await ask(queue, *(sequence(600, i) for i in range(20)), name="early")
        for _ in range(10):
            serve(queue)
        await ask(queue, *(sequence(600, 100 + i) for i in range(10)), name="late")
        order = []
        for _ in range(6):
            (item,) = queue.take()
            order.append(item.caller)
            queue.finish(item, 0)
        assert 2 <= order.count("early") <= 4

    asyncio.run(run())


def test_a_pack_of_three_callers_is_full_too():
    """Their shares need not divide it: 4,096 tokens are 1,365 and a third for each."""

    async def run():
        queue = TokenQueue(pack_tokens=4096, max_tokens=100_000)
        for name in ("one", "two", "three"):
            await ask(queue, *(sequence(512, i) for i in range(20)), name=name, kind=name)
        assert queue.holds_pack()

    asyncio.run(run())


def test_work_that_comes_no_sooner_at_another_caller_stays_where_it_is():
    async def run():
        queue = TokenQueue(pack_tokens=600, max_tokens=100_000)
        for name in ("first", "second"):
            await ask(queue, sequence(600), name=name)
        assert queue._waiting.held() == {"first": 600}

    asyncio.run(run())


def test_one_large_request_takes_turns_with_several_small_ones():
    async def run():
        queue = TokenQueue(pack_tokens=512, max_tokens=100_000)
        await ask(queue, *(sequence(512, i) for i in range(6)), name="large")
        for i in range(3):
            await ask(queue, sequence(512, 10 + i), name="small")
        order = []
        for _ in range(6):
            (item,) = queue.take()
            order.append(item.caller)
            queue.finish(item, 0)
        assert order == ["large", "small"] * 3

    asyncio.run(run())


def test_work_that_another_asks_for_later_keeps_its_place():
    """The second caller's own work is behind, so it does not hasten what it shares with the first."""

    async def run():
        queue = TokenQueue(pack_tokens=600, max_tokens=100_000)
        await ask(queue, *(sequence(600, i) for i in range(3)), name="first")
        await ask(queue, *(sequence(600, 10 + i) for i in range(5)), name="second")
        await ask(queue, sequence(600, 1), name="second")
        assert queue._waiting.held() == {"first": 1800, "second": 3000}

    asyncio.run(run())


def test_results_come_in_the_order_of_what_was_asked_for_wherever_they_come_from():
    async def run():
        queue = TokenQueue(pack_tokens=100, max_tokens=1000, cache_size=8)
        first = await ask(queue, sequence(1, 1), cached=True)
        assert serve(queue) == [1] and await first == [1]
        task = await ask(queue, *(sequence(1, fill) for fill in (2, 1, 3, 2)), cached=True)
        assert queue.waiting_tokens == 2
        assert serve(queue) == [1, 1]
        assert await task == [2, 1, 3, 2]

    asyncio.run(run())
