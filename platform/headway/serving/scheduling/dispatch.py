"""Sends packs to replicas as fast as they compute them, and again if a replica dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from headway.inference.packing import Pack
from headway.serving.scheduling.lanes import QueuedSequence
from headway.serving.scheduling.messages import Call, LethalSequenceError, ReplicaLostError
from headway.serving.scheduling.queue import TokenQueue

_log = logging.getLogger(__name__)

_PACKS_PER_REPLICA = 2
"""One that it computes, and one that lies ready, so that it never waits for the next."""

_LEAD_S = 0.015
"""How long before a replica should be done the next pack is sent to it."""

_MAX_PACK_TIME = 0.25
"""Of `pack_timeout`: what a pack should take at most. A replica that needs four times as long is lost."""

_POLL_S = 0.01
_FORGET_AFTER_S = 10.0
_MAX_ATTEMPTS = 20

_MAX_DEATHS = 3
_MAX_DEATHS_ALONE = 2
"""Replicas that die of a sequence before it is given up, and how many of them with nothing else to compute.
Something else may kill one at any moment; that it kills two in the milliseconds of the same sequence is no
coincidence. Whoever sends such a text would otherwise take down all replicas, one by one."""


@dataclass
class Dispatcher:
    """Feeds one model's replicas from its queue.

    It learns how many replicas there are from who answers. While more than a pack waits, it sends one pack
    more than the known replicas can take, which reaches a new replica if there is one.

    An idle replica gets a pack at once. The pack that is to lie ready at a busy replica is filled until
    shortly before that is done: answers free many clients at the same moment, which then ask one by one, and
    otherwise the next pack would hold the first of them alone.

    Attributes:
        queue: what waits.
        call: computes a pack of one kind on some replica; raises `ReplicaLostError` if that is lost.
        pack_timeout: seconds after which a replica counts as lost. Less than a client waits, so that another
            replica has time to answer.
        pause: seconds before the packs of a lost replica are queued again.
        on_pack: called after every computed pack, with its sequences, tokens and seconds.
        on_retry: called for every pack that is queued again.
    """

    queue: TokenQueue
    call: Call
    pack_timeout: float = 10.0
    pause: float = 0.1
    on_pack: Callable[[int, int, float], None] = lambda sequences, tokens, seconds: None
    on_retry: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._sent: dict[asyncio.Task[None], float] = {}  # each with the time it should be done
        self._slot_freed = asyncio.Event()
        self._suspect_sent = asyncio.Lock()
        self._last_reply = 0.0

    @property
    def replicas(self) -> int:
        """How many have answered recently."""
        now = time.monotonic()
        self._seen = {name: at for name, at in self._seen.items() if now - at < _FORGET_AFTER_S}
        return len(self._seen)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and a replica has nothing to compute."""
        return not self.queue.work_waits.is_set() and len(self._sent) < max(1, self.replicas)

    @property
    def capacity(self) -> int:
        """Packs that may be at replicas now."""
        more = self.queue.holds_pack(self.pack_limit)
        return max(1, self.replicas) * _PACKS_PER_REPLICA + more

    @property
    def pack_limit(self) -> int:
        """Tokens of a pack: `pack_tokens`, or as many as a slow replica should compute in time."""
        speed = self.queue.tokens_per_second / max(1, self.replicas)
        return max(1, min(self.queue.pack_tokens, int(speed * self.pack_timeout * _MAX_PACK_TIME)))

    async def run(self) -> None:
        """Send packs until cancelled."""
        while True:
            await self.queue.work_waits.wait()
            pause = self._pause()
            if pause != 0.0:
                self._slot_freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._slot_freed.wait(), pause)
                continue
            items = self.queue.take(self.pack_limit)
            if items:
                done_at = self._done_at(sum(item.tokens for item in items))
                task = asyncio.create_task(self._send(items))
                self._sent[task] = done_at
                task.add_done_callback(self._free)

    async def drain(self) -> None:
        """Return once nothing waits and no pack is at a replica."""
        while self.queue.work_waits.is_set() or self._sent:
            await asyncio.sleep(0.02)

    def _pause(self) -> float | None:
        """Seconds until it is time to look again; 0 to send a pack now, None to wait until one comes back."""
        if len(self._sent) >= self.capacity:
            return None
        if len(self._sent) < max(1, self.replicas) or self.queue.holds_pack(self.pack_limit):
            return 0.0
        left = min(self._sent.values()) - _LEAD_S - time.monotonic()
        return min(left, _POLL_S) if left > 0.0 else 0.0

    def _done_at(self, tokens: int) -> float:
        """When a pack that is sent now should be done."""
        replicas, begins = max(1, self.replicas), time.monotonic()
        if len(self._sent) >= replicas:
            begins = max(begins, min(self._sent.values()))
        return begins + tokens * replicas / max(self.queue.tokens_per_second, 1.0)

    def _free(self, task: asyncio.Task[None]) -> None:
        self._sent.pop(task, None)
        self._slot_freed.set()

    async def _send(self, items: list[QueuedSequence]) -> None:
        """Have some replica compute a pack, and finish or queue again what is in it.

        Of sequences that were sent alone to a replica that died, one is sent at a time. If several were at
        the same replica, nobody could say which of them killed it.
        """
        suspected = any(item.died_alone for item in items)
        async with self._suspect_sent if suspected else contextlib.nullcontext():
            await self._compute(items)

    async def _compute(self, items: list[QueuedSequence]) -> None:
        started = time.monotonic()
        try:
            pack = Pack.of([item.sequence for item in items])
            reply = await asyncio.wait_for(self.call(items[0].kind, pack), self.pack_timeout)
        except (ReplicaLostError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            _log.warning("a pack of %d sequences is sent again: %s", len(items), reason)
            if isinstance(error, TimeoutError):
                self._slow_down(sum(item.tokens for item in items))
            await self._send_again(items, getattr(error, "replica", None))
        except Exception as error:
            self._fail(items, error)
        else:
            self._seen[reply.replica] = time.monotonic()
            self._measure(sum(item.tokens for item in items), len(items), started)
            for item, result in zip(items, reply.results, strict=True):
                self.queue.finish(item, result)

    async def _send_again(self, items: list[QueuedSequence], died: str | None) -> None:
        """Queue a lost replica's sequences again, and count the replicas from zero."""
        self.on_retry()
        self._seen.clear()
        if died is not None:
            for item in items:
                item.died.add(died)
                item.died_alone |= {died} if len(items) == 1 else set()
        await asyncio.sleep(self.pause)
        hopeless = {item: error for item in items if (error := _given_up(item)) is not None}
        for item, error in hopeless.items():
            self.queue.finish(item, error)
        self.queue.put_back([item for item in items if item not in hopeless])

    def _fail(self, items: list[QueuedSequence], error: Exception) -> None:
        """Let only the sequence fail that cannot be computed: those of its pack are tried one by one."""
        if len(items) == 1:
            self.queue.finish(items[0], error)
            return
        for item in items:
            item.attempts += 2
        self.queue.put_back(items)

    def _slow_down(self, tokens: int) -> None:
        """Send smaller packs, as so many tokens were too many if the replica was not lost but is slow."""
        speed = tokens / self.pack_timeout * max(1, self.replicas)
        self.queue.tokens_per_second = min(self.queue.tokens_per_second, speed)

    def _measure(self, tokens: int, sequences: int, started: float) -> None:
        """Update the moving average of the tokens that all replicas compute in a second."""
        now = time.monotonic()
        last, self._last_reply = self._last_reply, now
        seconds = max(1e-3, now - max(last, started))
        self.queue.tokens_per_second += 0.1 * (tokens / seconds - self.queue.tokens_per_second)
        self.queue.on_stage("compute", now - started)
        self.on_pack(sequences, tokens, now - started)


def _given_up(item: QueuedSequence) -> Exception | None:
    """Why a sequence whose replica was lost is not tried once more; None if it is.

    What Ray says of a lost replica has addresses in it, and is for the log alone.
    """
    if len(item.died) >= _MAX_DEATHS and len(item.died_alone) >= _MAX_DEATHS_ALONE:
        _log.error("%d replicas died of a sequence of %d tokens", len(item.died), item.tokens)
        return LethalSequenceError(f"{len(item.died)} replicas died while they computed this")
    if item.attempts >= _MAX_ATTEMPTS:
        return ReplicaLostError("every replica that computed this was lost")
    return None
