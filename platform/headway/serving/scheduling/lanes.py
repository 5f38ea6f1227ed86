"""Sequences that wait for a replica, and which of them make the next pack."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from headway.inference.packing import TokenSequence

_MAX_ATTEMPTS_IN_PACK = 2
"""Failures in a pack with others, after which a sequence is computed alone."""


@dataclass(eq=False)
class QueuedSequence:
    """A sequence that some request waits for.

    Attributes:
        kind: the model's version and the operation, the same for all sequences of a pack.
        key: equal for equal work.
        sequence: the tokens.
        result: of the operation on the sequence.
        caller: who asked for it first.
        order: its place among all that wait: the virtual time of `FairClock`, then the number of its arrival.
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
    caller: str
    order: tuple[float, int]
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

    @property
    def alone(self) -> bool:
        """Whether it makes a pack of its own: it failed too often with others, or killed a replica alone."""
        return self.attempts >= _MAX_ATTEMPTS_IN_PACK or bool(self.died_alone)


class Lanes:
    """A lane for each kind and caller, each in the order of its sequences."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, dict[str, deque[QueuedSequence]]] = {}

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def append(self, item: QueuedSequence) -> None:
        """Add a sequence that comes after all others of its caller."""
        self._lanes.setdefault(item.kind, {}).setdefault(item.caller, deque()).append(item)

    def insert(self, item: QueuedSequence) -> None:
        """Add a sequence at its place."""
        lanes = self._lanes.setdefault(item.kind, {})
        lane = [*lanes.get(item.caller, ()), item]
        lanes[item.caller] = deque(sorted(lane, key=lambda waiting: waiting.order))

    def remove(self, item: QueuedSequence) -> None:
        """Take out a sequence that waits."""
        self._lanes[item.kind][item.caller].remove(item)
        self._tidy(item.kind)

    def pop_pack(self, max_tokens: int, share: int) -> tuple[list[QueuedSequence], list[QueuedSequence]]:
        """Remove the next pack: sequences of one kind, the first in order, with at most `max_tokens` tokens.

        A single sequence may be longer.

        Args:
            max_tokens: of the pack.
            share: tokens of one caller in it, or one sequence if that is longer.

        Returns:
            The pack, empty if nothing waits; and what was removed because nobody waits for it any longer.
        """
        dropped: list[QueuedSequence] = []
        pack: list[QueuedSequence] = []
        while self._lanes and not pack:
            kind = min(self._lanes, key=self._first_order)
            pack = list(self._filled(kind, max_tokens, share, dropped))
            self._tidy(kind)
        return pack, dropped

    def _first_order(self, kind: Hashable) -> tuple[float, int]:
        return min(lane[0].order for lane in self._lanes[kind].values())

    def _filled(
        self, kind: Hashable, max_tokens: int, share: int, dropped: list[QueuedSequence]
    ) -> Iterator[QueuedSequence]:
        tokens = 0
        heads = [(lane[0].order, caller, share) for caller, lane in self._lanes[kind].items()]
        heapq.heapify(heads)
        while heads:
            _, caller, left = heapq.heappop(heads)
            lane = self._lanes[kind][caller]
            item = lane[0]
            if item.waiters:
                if tokens and (item.alone or tokens + item.tokens > max_tokens):
                    return
                if left < share and item.tokens > left:
                    continue  # the caller has its share of this pack
                yield item
                tokens += item.tokens
                left -= item.tokens
            else:
                dropped.append(item)
            lane.popleft()
            if item.waiters and item.alone:
                return
            if lane:
                heapq.heappush(heads, (lane[0].order, caller, left))

    def _tidy(self, kind: Hashable) -> None:
        lanes = {caller: lane for caller, lane in self._lanes[kind].items() if lane}
        if lanes:
            self._lanes[kind] = lanes
        else:
            del self._lanes[kind]
