"""The queue of sequences that wait for a replica, packed by tokens.

The longest wait comes first. Equal work is computed once, and nothing that nobody waits for.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from headway.inference.packing import TokenSequence

_MAX_ATTEMPTS_IN_PACK = 2
"""Failures in a pack with others, after which a sequence is computed alone."""


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


class DeadlinePassedError(Exception):
    """The answer did not come within the client's timeout."""


@dataclass(eq=False)
class QueuedSequence:
    """A sequence that some request waits for.

    Attributes:
        kind: the model's version and the operation, the same for all sequences of a pack.
        key: equal for equal work.
        sequence: the tokens.
        result: of the operation on the sequence.
        number: in the order of arrival.
        waiters: requests that still want the result; with none it is not computed.
        queued: whether it waits; otherwise a replica is computing it.
        attempts: failed packs it was part of.
        died: replicas that died while they computed it.
        died_alone: those of them to which it was sent alone.
        arrived: when, by the monotonic clock.
    """

    kind: Any
    key: Hashable
    sequence: TokenSequence
    result: asyncio.Future[Any]
    number: int
    waiters: int = 0
    queued: bool = True
    attempts: int = 0
    died: set[str] = field(default_factory=set)
    died_alone: set[str] = field(default_factory=set)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.sequence.ids)


@dataclass
class TokenQueue:
    """The sequences that wait to be computed, and those that a replica is computing.

    Attributes:
        pack_tokens: tokens that a replica computes at once.
        max_tokens: tokens that may wait.
        cache_size: results kept for sequences that come again; 0 keeps none.
        tokens_per_second: recent speed of all replicas together, to estimate waits.
        on_stage: called with every stage that a text or a sequence has passed.
        waiting_tokens: tokens that wait.
        computing_tokens: tokens that replicas are computing.
        work_waits: set while something waits.
    """

    pack_tokens: int
    max_tokens: int
    cache_size: int = 0
    tokens_per_second: float = 10_000.0
    on_stage: OnStage = lambda stage, seconds: None
    waiting_tokens: int = field(default=0, init=False)
    computing_tokens: int = field(default=0, init=False)
    work_waits: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._lanes: dict[Hashable, deque[QueuedSequence]] = {}
        self._unfinished: dict[Hashable, QueuedSequence] = {}
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def unanswered_tokens(self) -> int:
        """Tokens that wait or are being computed: what the replicas have to do."""
        return self.waiting_tokens + self.computing_tokens

    async def compute(
        self, kind: Hashable, sequences: Sequence[TokenSequence], timeout: float, *, cached: bool = False
    ) -> list[Any]:
        """The results for some sequences, in their order, once replicas have computed them.

        If the call is cancelled, sequences that nobody else waits for are withdrawn.

        Args:
            kind: the model's version and the operation.
            sequences: what to compute; an equal sequence that is already queued is shared.
            timeout: seconds that the caller waits at most.
            cached: whether results may come from the cache, and are kept there.

        Raises:
            QueueFullError: the queue accepts none of them.
            DeadlinePassedError: the timeout is over.
        """
        known, items = self._admit(kind, sequences, cached)
        try:
            pending = {item.result for item in items.values()}
            if pending and (await asyncio.wait(pending, timeout=timeout))[1]:
                raise DeadlinePassedError(f"no answer within {timeout:g} s")
        finally:
            for item in items.values():
                self._leave(item)
        return [known[i] if i in known else self._remember(items[i], cached) for i in range(len(sequences))]

    def take(self) -> list[QueuedSequence]:
        """Remove and return the next pack; empty if nothing waits.

        Its sequences are of one kind, those that came first, and have at most `pack_tokens` tokens together,
        unless a single one is longer.
        """
        while self._lanes:
            lane = min(self._lanes.values(), key=lambda items: items[0].number)
            pack = self._fill(lane)
            if not lane:
                self._lanes = {kind: items for kind, items in self._lanes.items() if items}
            if pack:
                break
        else:
            pack = []
        if not self._lanes:
            self.work_waits.clear()
        now = time.monotonic()
        for item in pack:
            if not item.attempts:
                self.on_stage("queue", now - item.arrived)
        return pack

    def put_back(self, items: Sequence[QueuedSequence]) -> None:
        """Queue a failed pack's sequences again, by arrival; from the third time on, each goes alone."""
        for item in items:
            item.attempts += 1
            item.queued = True
            self.computing_tokens -= item.tokens
            self.waiting_tokens += item.tokens if item.waiters else 0
            lane = [*self._lanes.get(item.kind, ()), item]
            self._lanes[item.kind] = deque(sorted(lane, key=lambda waiting: waiting.number))
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

    def _fill(self, lane: deque[QueuedSequence]) -> list[QueuedSequence]:
        pack: list[QueuedSequence] = []
        tokens = 0
        while lane:
            item = lane[0]
            alone = item.attempts >= _MAX_ATTEMPTS_IN_PACK or bool(item.died_alone)
            if item.waiters and pack and (alone or tokens + item.tokens > self.pack_tokens):
                break
            lane.popleft()
            if not item.waiters:
                self._unfinished.pop(item.key, None)
                continue
            item.queued = False
            self.waiting_tokens -= item.tokens
            self.computing_tokens += item.tokens
            pack.append(item)
            tokens += item.tokens
            if alone:
                break
        return pack

    def _admit(
        self, kind: Hashable, sequences: Sequence[TokenSequence], cached: bool
    ) -> tuple[dict[int, Any], dict[int, QueuedSequence]]:
        """Cached results, and queued sequences for all others, by index."""
        keys = [(kind, sequence.ids.tobytes(), sequence.types.tobytes()) for sequence in sequences]
        known = {i: self._recall(key) for i, key in enumerate(keys) if cached and key in self._cache}
        fresh = {key: i for i, key in enumerate(keys) if i not in known and key not in self._unfinished}
        tokens = sum(len(sequences[i].ids) for i in fresh.values())
        # A request longer than the queue is accepted if nothing else waits, or it never would be.
        if self.waiting_tokens and self.waiting_tokens + tokens > self.max_tokens:
            raise QueueFullError(max(1, math.ceil(self.waiting_tokens / self.tokens_per_second)))
        for key, i in fresh.items():
            self._enqueue(kind, key, sequences[i])
        items = {i: self._unfinished[key] for i, key in enumerate(keys) if i not in known}
        for item in items.values():
            self._join(item)
        return known, items

    def _enqueue(self, kind: Hashable, key: Hashable, sequence: TokenSequence) -> None:
        result = asyncio.get_running_loop().create_future()
        item = self._unfinished[key] = QueuedSequence(kind, key, sequence, result, next(self._numbers))
        self._lanes.setdefault(kind, deque()).append(item)
        self.work_waits.set()

    def _join(self, item: QueuedSequence) -> None:
        item.waiters += 1
        if item.waiters == 1 and item.queued:
            self.waiting_tokens += item.tokens

    def _leave(self, item: QueuedSequence) -> None:
        item.waiters -= 1
        if not item.waiters and item.queued:
            self.waiting_tokens -= item.tokens

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
