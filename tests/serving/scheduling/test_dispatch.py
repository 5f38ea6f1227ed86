"""The dispatcher against replicas that die, hang, reject an input or appear later."""

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from headway.inference.packing import TokenSequence
from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.dispatch import Dispatcher
from headway.serving.scheduling.messages import LethalSequenceError, ReplicaLostError, Reply
from headway.serving.scheduling.queue import TokenQueue


def sequence(length: int, fill: int = 0) -> TokenSequence:
    return TokenSequence(np.full(length, fill, np.int32), np.zeros(length, np.uint8))


async def ask(queue: TokenQueue, one: TokenSequence, name: str = "someone", seconds: float = 5.0):
    return await queue.compute("k", [one], Caller.starting_now(name, seconds))


async def run_with(call, work, **settings):
    queue = TokenQueue(pack_tokens=8, max_tokens=1000)
    dispatcher = Dispatcher(queue, call, **settings)
    running = asyncio.create_task(dispatcher.run())
    try:
        return await work(queue, dispatcher)
    finally:
        running.cancel()


def sums(pack):
    return [int(part.sum()) for part in np.split(pack.ids, np.cumsum(pack.lengths)[:-1])]


def test_a_dead_replica_costs_no_answer():
    calls = []

    async def call(kind, pack):
        calls.append(sums(pack))
        if len(calls) <= 3:
            raise ReplicaLostError("died")
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        answers = await asyncio.gather(*(ask(queue, sequence(2, i)) for i in range(4)))
        assert answers == [[0], [2], [4], [6]]
        assert len(retries) == 3

    retries: list[None] = []
    asyncio.run(run_with(call, work, on_retry=lambda: retries.append(None)))


def test_a_replica_that_hangs_is_given_up():
    calls = []

    async def call(kind, pack):
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(60)
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        assert await ask(queue, sequence(3, 2)) == [6]

    asyncio.run(run_with(call, work, pack_timeout=0.05))


def test_one_bad_input_fails_alone():
    async def call(kind, pack):
        if 7 in pack.ids:
            raise ValueError("cannot compute 7")
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        tasks = [ask(queue, sequence(1, i)) for i in (6, 7, 8)]
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert good == [6] and also_good == [8]
        assert isinstance(bad, ValueError)

    asyncio.run(run_with(call, work))


def test_a_new_replica_is_found_while_work_waits():
    """Two replicas that each compute one pack at a time: both are kept busy, with one pack in reserve."""
    under_way, peak = 0, 0

    async def call(kind, pack):
        nonlocal under_way, peak
        under_way += 1
        peak = max(peak, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return Reply(f"r{int(pack.ids[0]) % 2}", sums(pack))

    async def work(queue, dispatcher):
        assert dispatcher.capacity == 2
        await asyncio.gather(*(ask(queue, sequence(8, i)) for i in range(40)))
        assert dispatcher.replicas == 2
        assert 4 <= peak <= 5

    asyncio.run(run_with(call, work))


def test_an_idle_replica_gets_work_at_once():
    async def call(kind, pack):
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        await ask(queue, sequence(1))
        now, waits = asyncio.get_running_loop().time, []
        for i in range(50):
            started = now()
            await ask(queue, sequence(1, i))
            waits.append(now() - started)
        # A wait for company (Ray Serve's default is 10 ms) would be in each of them, also on a busy machine.
        assert min(waits) < 0.005

    asyncio.run(run_with(call, work))


def test_what_comes_while_a_replica_computes_leaves_together():
    packs, begun = [], []

    async def call(kind, pack):
        packs.append(sums(pack))
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(2.0)  # ten times as long as expected, so that a busy machine has the time
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        queue.tokens_per_second = 5.0
        asking = []
        for i in range(4):
            asking.append(asyncio.create_task(ask(queue, sequence(1, i))))
            await asyncio.sleep(0.02)
        assert await asyncio.gather(*asking) == [[0], [1], [2], [3]]

    asyncio.run(run_with(call, work))
    assert packs == [[0], [1, 2, 3]]
    assert 0.1 < begun[1] - begun[0] < 2.0  # it lies ready before the first is done


def test_a_replica_that_always_dies_ends_in_an_error():
    calls = []

    async def call(kind, pack):
        calls.append(1)
        raise ReplicaLostError("died")

    async def work(queue, dispatcher):
        with pytest.raises(ReplicaLostError, match=r"^every replica that computed this was lost$"):
            await ask(queue, sequence(1), seconds=20.0)

    asyncio.run(run_with(call, work, pause=0.001))
    assert len(calls) == 21


def test_a_slow_replica_gets_smaller_packs_until_it_is_in_time():
    sizes = []

    async def call(kind, pack):
        sizes.append(len(pack.ids))
        await asyncio.sleep(len(pack.ids) * 0.05)
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        asking = [ask(queue, sequence(1, i), seconds=60.0) for i in range(16)]
        assert await asyncio.gather(*asking) == [[i] for i in range(16)]

    # A full pack takes 0.4 s, longer than it may.
    asyncio.run(run_with(call, work, pack_timeout=0.3, pause=0.001))
    assert sizes[0] == 8 and max(sizes[-4:]) < 6


def test_a_sequence_that_kills_its_replicas_is_given_up_and_costs_no_other_its_answer():
    dead: list[str] = []

    async def call(kind, pack):
        if 7 in pack.ids:
            dead.append(f"replica-{len(dead)}")
            raise ReplicaLostError("died", dead[-1])
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        with pytest.raises(LethalSequenceError, match=r"^3 replicas died while they computed this$"):
            await ask(queue, sequence(1, 7), seconds=20.0)
        assert len(dead) == 3
        dead.clear()
        tasks = [ask(queue, sequence(1, i), seconds=20.0) for i in (6, 7, 8)]
        good, lethal, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert good == [6] and also_good == [8] and isinstance(lethal, LethalSequenceError)
        assert len(dead) == 4  # twice in a pack with others

    asyncio.run(run_with(call, work, pause=0.001))


def test_what_is_computed_beside_a_sequence_that_kills_replicas_is_not_blamed_for_it():
    """Three packs of one sequence each are at the only replica, and die with it."""
    replicas = 0
    death = asyncio.Event()

    async def call(kind, pack):
        nonlocal replicas, death
        replica, dies = f"replica-{replicas}", death
        if 7 in pack.ids:
            await asyncio.sleep(0.01)  # until the others are there
            replicas, death = replicas + 1, asyncio.Event()
            dies.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(dies.wait(), 0.03)
            raise ReplicaLostError("died", replica)
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        tasks = [ask(queue, sequence(8, i), seconds=20.0) for i in (6, 7, 8)]
        good, lethal, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert good == [48] and also_good == [64] and isinstance(lethal, LethalSequenceError)
        assert replicas == 3

    asyncio.run(run_with(call, work, pause=0.001))


def test_a_sequence_is_not_blamed_for_one_replica_that_is_still_called_after_its_death():
    calls = []

    async def call(kind, pack):
        calls.append(1)
        if len(calls) <= 10:
            raise ReplicaLostError("died", "the same")
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        assert await ask(queue, sequence(1, 3), seconds=20.0) == [3]

    asyncio.run(run_with(call, work, pause=0.001))


def test_replicas_are_counted_from_zero_once_one_is_lost():
    """Which of them is gone is not known; those that are left answer again."""
    lost, counts = False, []

    async def call(kind, pack):
        nonlocal lost
        if lost:
            lost = False
            raise ReplicaLostError("died")
        counts.append(dispatcher.replicas)
        return Reply(f"r{int(pack.ids[0]) % 2}", sums(pack))

    async def work():
        nonlocal lost
        running = asyncio.create_task(dispatcher.run())
        for fill in (0, 1):
            await dispatcher.queue.compute("k", [sequence(1, fill)], Caller.starting_now("someone", 5.0))
        lost = True
        assert await dispatcher.queue.compute("k", [sequence(1, 2)], Caller.starting_now("someone", 5.0)) == [
            2
        ]
        running.cancel()

    dispatcher = Dispatcher(TokenQueue(pack_tokens=8, max_tokens=1000), call, pause=0.001)
    asyncio.run(work())
    assert counts == [0, 1, 0]
    assert dispatcher.replicas == 1 and dispatcher.capacity == 2


def test_a_release_is_drained_once_nothing_waits_and_nothing_is_computed():
    events = []

    async def call(kind, pack):
        await asyncio.sleep(0.05)
        events.append("computed")
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        asking = [asyncio.create_task(ask(queue, sequence(8, i))) for i in range(3)]
        await asyncio.sleep(0)
        await dispatcher.drain()
        events.append("drained")
        assert await asyncio.gather(*asking) == [[0], [8], [16]]
        await dispatcher.drain()

    asyncio.run(run_with(call, work))
    assert events == ["computed"] * 3 + ["drained"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_replica_that_is_too_slow_shows_how_fast_it_can_be_at_most(replicas):
    """Less than a pack of 8 tokens in 0.2 s, on each of the replicas."""
    calls, speeds = 0, []

    async def call(kind, pack):
        nonlocal calls
        calls += 1
        speeds.append(queue_of[0].tokens_per_second)
        if calls == 3:
            await asyncio.sleep(60)
        return Reply(f"r{calls % replicas}", sums(pack))

    async def work(queue, dispatcher):
        queue_of.append(queue)
        queue.tokens_per_second = 1e6
        for i in range(3):
            await ask(queue, sequence(8, i))

    queue_of: list[TokenQueue] = []
    asyncio.run(run_with(call, work, pack_timeout=0.2, pause=0.001))
    assert speeds[3] == pytest.approx(8 / 0.2 * replicas)


@pytest.mark.parametrize(("error", "reason"), [(ReplicaLostError("died"), "died"), (None, "TimeoutError")])
def test_the_log_says_why_a_pack_is_sent_again(error, reason, caplog):
    calls = 0

    async def call(kind, pack):
        nonlocal calls
        calls += 1
        if calls == 1 and error is not None:
            raise error
        if calls == 1:
            await asyncio.sleep(60)
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        await ask(queue, sequence(1))

    with caplog.at_level("WARNING"):
        asyncio.run(run_with(call, work, pack_timeout=0.05, pause=0.001))
    assert f"a pack of 1 sequences is sent again: {reason}" in caplog.messages


def test_a_replica_is_told_the_kind_and_gets_no_more_than_it_computes_in_time():
    packs = []

    async def call(kind, pack):
        packs.append((kind, len(pack.ids)))
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        queue.tokens_per_second = 1.3  # a quarter of 10 s is enough for three tokens
        await asyncio.gather(*(ask(queue, sequence(1, i)) for i in range(6)))

    asyncio.run(run_with(call, work))
    assert packs[0] == ("k", 3)


def test_the_next_pack_lies_ready_before_the_first_is_done():
    """The first should take 0.1 s, and takes until the second is there."""
    begun = 0
    second = asyncio.Event()

    async def call(kind, pack):
        nonlocal begun
        begun += 1
        if begun == 2:
            second.set()
        await asyncio.wait_for(second.wait(), 5.0)
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        queue.tokens_per_second = 10.0
        asking = [asyncio.create_task(ask(queue, sequence(1, 1)))]
        await asyncio.sleep(0.02)
        asking.append(asyncio.create_task(ask(queue, sequence(1, 2))))
        assert await asyncio.gather(*asking) == [[1], [2]]

    asyncio.run(run_with(call, work))


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def without_replicas(queue: TokenQueue) -> Any:
    """A dispatcher that is only asked when it would send a pack."""
    return Dispatcher(queue, call=None)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("headway.serving.scheduling.dispatch.time", clock)
    return clock


def test_the_speed_of_all_replicas_is_a_moving_average(clock):
    packs, stages = [], []

    async def call(kind, pack):
        clock.now += 2.0
        return Reply("r", sums(pack))

    async def work(queue, dispatcher):
        queue.tokens_per_second = 100.0
        queue.on_stage = lambda stage, seconds: stages.append((stage, seconds))
        await ask(queue, sequence(8))
        assert queue.tokens_per_second == pytest.approx(0.9 * 100 + 0.1 * 8 / 2)
        await asyncio.gather(ask(queue, sequence(3)), ask(queue, sequence(3, 1)))
        assert queue.tokens_per_second == pytest.approx(0.9 * 90.4 + 0.1 * 6 / 2)

    asyncio.run(run_with(call, work, on_pack=lambda *pack: packs.append(pack)))
    assert packs == [(1, 8, 2.0), (2, 6, 2.0)]
    assert [seconds for stage, seconds in stages if stage == "compute"] == [2.0, 2.0]


def test_packs_that_overlap_count_the_time_since_the_last_one_was_done(clock):
    async def run():
        queue = TokenQueue(pack_tokens=8, max_tokens=1000, tokens_per_second=0.0)
        dispatcher = without_replicas(queue)
        clock.now = 1005.0
        dispatcher._measure(50, 1, started=1000.0)
        assert queue.tokens_per_second == pytest.approx(0.1 * 10)
        clock.now = 1006.0
        dispatcher._measure(50, 1, started=1001.0)
        assert queue.tokens_per_second == pytest.approx(0.9 * 1 + 0.1 * 50)
        dispatcher._measure(50, 1, started=1001.0)  # at the same moment
        assert queue.tokens_per_second == pytest.approx(0.9 * 5.9 + 0.1 * 50 / 1e-3)

    asyncio.run(run())


def test_a_pack_is_done_after_those_before_it_and_the_time_of_its_tokens(clock):
    async def run():
        queue = TokenQueue(pack_tokens=64, max_tokens=1000, tokens_per_second=100.0)
        dispatcher = without_replicas(queue)
        assert dispatcher._done_at(50) == 1000.5
        dispatcher._seen = {"one": 999.0, "other": 1000.0}
        assert dispatcher._done_at(50) == 1001.0, "each of two has half of the speed"
        dispatcher._sent = {"a": 1005.0}
        assert dispatcher._done_at(50) == 1001.0, "the other one is idle"
        dispatcher._sent = {"a": 1005.0, "b": 1003.0}
        assert dispatcher._done_at(50) == 1004.0
        dispatcher._sent = {"a": 1005.0, "b": 998.0}
        assert dispatcher._done_at(50) == 1001.0, "what should be done by now is taken to be"
        queue.tokens_per_second = 0.01
        assert dispatcher._done_at(5) == 1010.0

    asyncio.run(run())


def test_a_pack_for_a_busy_replica_is_sent_shortly_before_that_is_done(clock):
    async def run():
        queue = TokenQueue(pack_tokens=8, max_tokens=1000)
        dispatcher = without_replicas(queue)
        assert dispatcher._pause() == 0.0
        for done_in, pause in ((9.0, 0.01), (0.02, 0.005), (0.014, 0.0), (-1.0, 0.0)):
            dispatcher._sent = {"a": 1000.0 + done_in}
            assert dispatcher._pause() == pytest.approx(pause)
        dispatcher._sent = {"a": 1009.0, "b": 1009.0}
        assert dispatcher._pause() is None
        asking = [asyncio.create_task(ask(queue, sequence(4, i))) for i in range(2)]
        await asyncio.sleep(0)
        assert dispatcher._pause() == 0.0, "a full pack waits, for which there may be a new replica"
        dispatcher._sent = dict.fromkeys("abc", 1009.0)
        assert dispatcher._pause() is None
        dispatcher._sent = {"a": 1009.0}
        asking[0].cancel()
        await asyncio.gather(asking[0], return_exceptions=True)
        assert dispatcher._pause() == 0.01
        queue.tokens_per_second = 1.7  # now four tokens are a pack, of which a quarter of 10 s is made
        assert dispatcher._pause() == 0.0
        asking[1].cancel()

    asyncio.run(run())
