"""The queue of sequences that wait for a replica, packed by tokens.

Callers get equal shares, so that none waits for all that another has asked for before. Equal work is computed
once, and nothing that nobody waits for.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from headway.inference.packing import TokenSequence
from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.fair_share import ActiveCallers, FairClock, SharedBuffer
from headway.serving.scheduling.lanes import Lanes, QueuedSequence

_QUANTUM = 512
"""Tokens. So many of a caller's go together: to spread a small request over packs would help nobody."""

Stage = Literal["wait", "tokenize", "queue", "compute"]
"""A text waits for the tokenizer and passes it; its sequences wait for a replica and are computed."""

OnStage = Callable[[Stage, float], None]
"""Is told of a stage and the seconds it took."""


class QueueFullError(Exception):
    """More tokens wait than the queue may hold.

    Attributes:
        retry_after: seconds until there should be space.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass
class TokenQueue:
    """The sequences that wait to be computed, and those that a replica is computing.

    Attributes:
        pack_tokens: tokens that a replica computes at once.
        max_tokens: tokens that may wait; see `SharedBuffer` for how many of one caller.
        cache_size: results kept for sequences that come again; 0 keeps none.
        tokens_per_second: recent speed of all replicas together, to estimate waits.
        on_stage: called with every stage that a text or a sequence has passed.
        max_request_tokens: of one request; half of `max_tokens` if None, which is all that fits.
        computing_tokens: tokens that replicas are computing.
        work_waits: set while something waits.
    """

    pack_tokens: int
    max_tokens: int
    cache_size: int = 0
    tokens_per_second: float = 10_000.0
    on_stage: OnStage = lambda stage, seconds: None
    max_request_tokens: int | None = None
    computing_tokens: int = field(default=0, init=False)
    work_waits: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._lanes = Lanes()
        self._clock = FairClock()
        self._callers = ActiveCallers()
        self._waiting = SharedBuffer(self.max_tokens)
        self._unfinished: dict[Hashable, QueuedSequence] = {}
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def request_limit(self) -> int:
        """Tokens of one request at most: none has more than fits into the queue."""
        return min(self.max_request_tokens or self.max_tokens, self._waiting.max_of_one)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait."""
        return self._waiting.used

    @property
    def unanswered_tokens(self) -> int:
        """Tokens that wait or are being computed: what the replicas have to do."""
        return self.waiting_tokens + self.computing_tokens

    async def compute(
        self, kind: Hashable, sequences: Sequence[TokenSequence], caller: Caller, *, cached: bool = False
    ) -> list[Any]:
        """The results for some sequences, in their order, once replicas have computed them.

        If the call is cancelled, sequences that nobody else waits for are withdrawn.

        Args:
            kind: the model's version and the operation.
            sequences: what to compute; an equal sequence that is already queued is shared.
            caller: who asks.
            cached: whether results may come from the cache, and are kept there.

        Raises:
            QueueFullError: the queue accepts none of them.
            DeadlinePassedError: the caller's deadline has passed.
        """
        known, items = self._admit(kind, sequences, caller.name, cached)
        self._callers.enter(caller.name)
        try:
            await caller.wait_for({item.result for item in items.values()})
        finally:
            self._callers.leave(caller.name)
            for item in items.values():
                self._leave(item)
        return [known[i] if i in known else self._remember(items[i], cached) for i in range(len(sequences))]

    def take(self, max_tokens: int | None = None) -> list[QueuedSequence]:
        """Remove and return the next pack; empty if nothing waits.

        Its sequences are of one kind and have at most `pack_tokens` tokens together, unless a single one is
        longer. While several callers are active, one that asks for much gets no more than its share of each
        pack: what others ask for then comes back almost as soon as without it.

        Args:
            max_tokens: of this pack, if that is less than `pack_tokens`.
        """
        limit = self._limit(max_tokens)
        pack, dropped = self._lanes.pop_pack(limit, self._share(limit))
        for item in dropped:
            self._unfinished.pop(item.key, None)
        if not self._lanes:
            self.work_waits.clear()
        now = time.monotonic()
        for item in pack:
            item.queued = False
            self._waiting.remove(item.caller, item.tokens)
            self.computing_tokens += item.tokens
            self._clock.advance(item.order[0])
            if not item.attempts:
                self.on_stage("queue", now - item.arrived)
        return pack

    def holds_pack(self, max_tokens: int | None = None) -> bool:
        """Whether the next pack would be full."""
        limit = self._limit(max_tokens)
        share = self._share(limit)
        return sum(min(held, share) for held in self._waiting.held().values()) >= limit

    def put_back(self, items: Sequence[QueuedSequence]) -> None:
        """Queue a failed pack's sequences again, at their places; from the third time on, each goes alone."""
        for item in items:
            item.attempts += 1
            item.queued = True
            self.computing_tokens -= item.tokens
            if item.waiters:
                self._waiting.add(item.caller, item.tokens)
            self._lanes.insert(item)
        self.work_waits.set()

    def finish(self, item: QueuedSequence, result: Any) -> None:
        """Give a result, or an exception, to all requests that wait for it."""
        self._unfinished.pop(item.key, None)
        self.computing_tokens -= item.tokens
        if item.result.done():
            return
        if isinstance(result, BaseException):
            item.result.set_exception(result)
            item.result.exception()  # asyncio would log it if nobody waits
        else:
            item.result.set_result(result)

    def _limit(self, max_tokens: int | None) -> int:
        return min(self.pack_tokens, max_tokens or self.pack_tokens)

    def _share(self, limit: int) -> int:
        """Tokens of one caller in a pack of so many; rounded up, so that all shares fill the pack."""
        return max(_QUANTUM, math.ceil(limit / max(1, self._callers.count())))

    def _admit(
        self, kind: Hashable, sequences: Sequence[TokenSequence], caller: str, cached: bool
    ) -> tuple[dict[int, Any], dict[int, QueuedSequence]]:
        """Cached results, and queued sequences for all others, by index."""
        keys = [(kind, sequence.ids.tobytes(), sequence.types.tobytes()) for sequence in sequences]
        known = {i: self._recall(key) for i, key in enumerate(keys) if cached and key in self._cache}
        fresh = {key: i for i, key in enumerate(keys) if i not in known and key not in self._unfinished}
        tokens = sum(len(sequences[i].ids) for i in fresh.values())
        if not self._waiting.accepts(caller, tokens):
            raise QueueFullError(max(1, math.ceil(self.waiting_tokens / self.tokens_per_second)))
        start, before = self._clock.start(caller, tokens), 0
        for key, i in fresh.items():
            order = (start + before // _QUANTUM * _QUANTUM, next(self._numbers))
            result = asyncio.get_running_loop().create_future()
            item = QueuedSequence(kind, key, sequences[i], result, caller, order)
            self._unfinished[key] = item
            self._lanes.append(item)
            before += item.tokens
        if fresh:
            self.work_waits.set()
        items = {i: self._unfinished[key] for i, key in enumerate(keys) if i not in known}
        for item in items.values():
            self._join(item, caller)
        return known, items

    def _join(self, item: QueuedSequence, caller: str) -> None:
        item.waiters += 1
        if not item.queued:
            return
        if item.waiters == 1:
            self._waiting.add(item.caller, item.tokens)
        if item.caller != caller:
            self._hasten(item, caller)

    def _hasten(self, item: QueuedSequence, caller: str) -> None:
        """Move a sequence to another caller that asks for it too, if it comes sooner there."""
        order = (self._clock.start(caller, 0), item.order[1])
        if order < item.order:
            self._lanes.remove(item)
            self._waiting.remove(item.caller, item.tokens)
            item.caller, item.order = caller, order
            self._waiting.add(caller, item.tokens)
            self._lanes.insert(item)

    def _leave(self, item: QueuedSequence) -> None:
        item.waiters -= 1
        if not item.waiters and item.queued:
            self._waiting.remove(item.caller, item.tokens)

    def _recall(self, key: Hashable) -> Any:
        self._cache.move_to_end(key)
        return self._cache[key]

    def _remember(self, item: QueuedSequence, cached: bool) -> Any:
        result = item.result.result()
        if cached and self.cache_size:
            # A result is a view of its whole pack, which the cache would keep in memory.
            self._cache[item.key] = result.copy() if isinstance(result, np.ndarray) else result
            self._cache.move_to_end(item.key)
            if len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        return result
