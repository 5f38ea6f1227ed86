"""Packs sent to replicas as fast as they can take them, and sent again when a replica dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from headway.inference.packing import Pack
from headway.serving.scheduling.messages import Call, ReplicaLostError
from headway.serving.scheduling.queue import Job, TokenQueue

_log = logging.getLogger(__name__)

_PACKS_A_REPLICA = 2
"""One that is computed, and one that lies ready, so that a replica never waits for the next."""

_LEAD = 0.015
"""Seconds before a replica should be done, at which the pack that it computes next leaves."""

_LOOK_EVERY = 0.01
_FORGET_AFTER = 10.0
_MOST_ATTEMPTS = 20


@dataclass
class Dispatcher:
    """Feeds one model's replicas from its queue.

    How many replicas there are is learnt from who answers: with more work than a pack waiting, one pack
    goes out beyond what the known replicas can take, and finds a new one if there is any.

    A replica that is idle gets a pack at once. The one that will lie ready at a busy replica is filled until
    shortly before that is done: answers free many clients at the same moment, who then ask one by one, and
    the first of them alone would otherwise be the next pack.

    Attributes:
        queue: what waits.
        call: computes a pack of one kind on some replica; raises `ReplicaLostError` when that one is gone.
        pack_timeout: seconds after which a replica counts as lost.
        pause: seconds before what a lost replica had goes out again.
        on_pack: told of every pack that was computed: sequences, tokens and seconds.
        on_retry: told of every pack that goes out again.
    """

    queue: TokenQueue
    call: Call
    pack_timeout: float = 60.0
    pause: float = 0.1
    on_pack: Callable[[int, int, float], None] = lambda sequences, tokens, seconds: None
    on_retry: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._sent: dict[asyncio.Task[None], float] = {}  # and when each should be done
        self._slot_freed = asyncio.Event()
        self._last_reply = 0.0

    @property
    def replicas(self) -> int:
        """How many have answered lately."""
        now = time.monotonic()
        self._seen = {name: at for name, at in self._seen.items() if now - at < _FORGET_AFTER}
        return len(self._seen)

    @property
    def idle(self) -> bool:
        """Nothing waits, and at least one replica has nothing to compute."""
        return not self.queue.work_waits.is_set() and len(self._sent) < max(1, self.replicas)

    @property
    def capacity(self) -> int:
        """Packs that may be under way now."""
        more = self.queue.waiting_tokens >= self.queue.pack_tokens
        return max(1, self.replicas) * _PACKS_A_REPLICA + more

    async def run(self) -> None:
        """Send packs for ever."""
        while True:
            await self.queue.work_waits.wait()
            pause = self._pause()
            if pause != 0.0:
                self._slot_freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._slot_freed.wait(), pause)
                continue
            jobs = self.queue.take()
            if jobs:
                done_at = self._done_at(sum(job.tokens for job in jobs))
                task = asyncio.create_task(self._send(jobs))
                self._sent[task] = done_at
                task.add_done_callback(self._free)

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is under way."""
        while self.queue.work_waits.is_set() or self._sent:
            await asyncio.sleep(0.02)

    def _pause(self) -> float | None:
        """Seconds until the next look at whether a pack should leave; 0 for now, None for a free place."""
        if len(self._sent) >= self.capacity:
            return None
        if len(self._sent) < max(1, self.replicas) or self.queue.waiting_tokens >= self.queue.pack_tokens:
            return 0.0
        left = min(self._sent.values()) - _LEAD - time.monotonic()
        return min(left, _LOOK_EVERY) if left > 0.0 else 0.0

    def _done_at(self, tokens: int) -> float:
        """When a pack that leaves now should be done."""
        replicas, begins = max(1, self.replicas), time.monotonic()
        if len(self._sent) >= replicas:
            begins = max(begins, min(self._sent.values()))
        return begins + tokens * replicas / max(self.queue.tokens_per_second, 1.0)

    def _free(self, task: asyncio.Task[None]) -> None:
        self._sent.pop(task, None)
        self._slot_freed.set()

    async def _send(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            pack = Pack.of([job.sequence for job in jobs])
            reply = await asyncio.wait_for(self.call(jobs[0].kind, pack), self.pack_timeout)
        except (ReplicaLostError, TimeoutError) as error:
            await self._send_again(jobs, error)
        except Exception as error:
            self._give_up_on(jobs, error)
        else:
            self._seen[reply.replica] = time.monotonic()
            self._measure(sum(job.tokens for job in jobs), len(jobs), started)
            for job, result in zip(jobs, reply.results, strict=True):
                self.queue.finish(job, result)

    async def _send_again(self, jobs: list[Job], error: Exception) -> None:
        """Jobs of a lost replica go back to their places; the replicas are counted again."""
        _log.warning("a pack of %d is sent again: %s", len(jobs), type(error).__name__)
        self.on_retry()
        self._seen.clear()
        await asyncio.sleep(self.pause)
        hopeless = [job for job in jobs if job.attempts >= _MOST_ATTEMPTS]
        for job in hopeless:
            self.queue.finish(job, error)
        self.queue.put_back([job for job in jobs if job not in hopeless])

    def _give_up_on(self, jobs: list[Job], error: Exception) -> None:
        """What cannot be computed fails alone: its neighbours in the pack are tried one by one."""
        if len(jobs) == 1:
            self.queue.finish(jobs[0], error)
            return
        for job in jobs:
            job.attempts += 2
        self.queue.put_back(jobs)

    def _measure(self, tokens: int, sequences: int, started: float) -> None:
        """Keep a running mean of the tokens that all replicas compute in a second."""
        now = time.monotonic()
        last, self._last_reply = self._last_reply, now
        seconds = max(1e-3, now - max(last, started))
        self.queue.tokens_per_second += 0.1 * (tokens / seconds - self.queue.tokens_per_second)
        self.on_pack(sequences, tokens, now - started)
