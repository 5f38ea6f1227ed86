"""Requests that wait, packed by tokens: longest wait first, nothing computed twice or for nobody."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.inference.packing import TokenSequence

_ATTEMPTS_TOGETHER = 2


class QueueFullError(Exception):
    """More tokens wait than the queue may hold.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class DeadlinePassedError(Exception):
    """The answer did not come in the time that the client gives."""


@dataclass(eq=False)
class Job:
    """A sequence that at least one request waits for.

    Attributes:
        kind: what a pack must agree in: the model's version and the operation.
        key: equal for equal work.
        result: of the operation on the sequence.
        number: in order of arrival.
        waiters: requests that still want it; it is computed for none.
        queued: whether it waits, or is being computed.
        attempts: packs it was part of that failed.
    """

    kind: Any
    key: Hashable
    sequence: TokenSequence
    result: asyncio.Future[Any]
    number: int
    waiters: int = 0
    queued: bool = True
    attempts: int = 0

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.sequence.ids)


@dataclass
class TokenQueue:
    """Sequences that wait to be computed, and those that are.

    Attributes:
        pack_tokens: tokens that a replica computes at once.
        most_tokens: tokens that may wait.
        cache_size: results that are kept for sequences that come again; 0 keeps none.
        tokens_per_second: what the replicas manage at present, for the estimate of a wait.
    """

    pack_tokens: int
    most_tokens: int
    cache_size: int = 0
    tokens_per_second: float = 10_000.0
    waiting_tokens: int = field(default=0, init=False)
    work_waits: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._lanes: dict[Hashable, deque[Job]] = {}
        self._jobs: dict[Hashable, Job] = {}
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._numbers = itertools.count()

    async def compute(
        self, kind: Hashable, sequences: Sequence[TokenSequence], timeout: float, *, cached: bool = False
    ) -> list[Any]:
        """The results for some sequences, in their order, once a replica has computed them.

        Cancelling the call withdraws the sequences that nobody else waits for.

        Args:
            kind: the model's version and the operation.
            sequences: what to compute; those that are computed for somebody else already are shared.
            timeout: seconds that the caller waits at most.
            cached: results may come from the cache, and go there.

        Raises:
            QueueFullError: nothing was accepted.
            DeadlinePassedError: the time is over.
        """
        known, jobs = self._admit(kind, sequences, cached)
        try:
            pending = {job.result for job in jobs.values()}
            if pending and (await asyncio.wait(pending, timeout=timeout))[1]:
                raise DeadlinePassedError(f"no answer within {timeout:g} s")
        finally:
            for job in jobs.values():
                self._leave(job)
        return [known[i] if i in known else self._remember(jobs[i], cached) for i in range(len(sequences))]

    def take(self) -> list[Job]:
        """Remove and return what is to be computed next; empty when nothing waits.

        Jobs of one kind, those that came first, together at most `pack_tokens` tokens unless a single
        one is longer.
        """
        while self._lanes:
            lane = min(self._lanes.values(), key=lambda jobs: jobs[0].number)
            pack = self._fill(lane)
            if not lane:
                self._lanes = {kind: jobs for kind, jobs in self._lanes.items() if jobs}
            if pack:
                break
        else:
            pack = []
        if not self._lanes:
            self.work_waits.clear()
        return pack

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Return jobs whose pack failed to their places; from the third time on they go alone."""
        for job in jobs:
            job.attempts += 1
            job.queued = True
            self.waiting_tokens += job.tokens if job.waiters else 0
            lane = [*self._lanes.get(job.kind, ()), job]
            self._lanes[job.kind] = deque(sorted(lane, key=lambda waiting: waiting.number))
        self.work_waits.set()

    def finish(self, job: Job, result: Any) -> None:
        """Give a job's result, or the exception it ended in, to all who wait for it."""
        self._jobs.pop(job.key, None)
        if job.result.done():
            return
        if isinstance(result, BaseException):
            job.result.set_exception(result)
            job.result.exception()  # a result that nobody waits for any more is no mistake
        else:
            job.result.set_result(result)

    def _fill(self, lane: deque[Job]) -> list[Job]:
        pack: list[Job] = []
        tokens = 0
        while lane:
            job = lane[0]
            alone = job.attempts >= _ATTEMPTS_TOGETHER
            if job.waiters and pack and (alone or tokens + job.tokens > self.pack_tokens):
                break
            lane.popleft()
            if not job.waiters:
                self._jobs.pop(job.key, None)
                continue
            job.queued = False
            self.waiting_tokens -= job.tokens
            pack.append(job)
            tokens += job.tokens
            if alone:
                break
        return pack

    def _admit(
        self, kind: Hashable, sequences: Sequence[TokenSequence], cached: bool
    ) -> tuple[dict[int, Any], dict[int, Job]]:
        """Results that are known, and jobs for the others, by the sequence's place."""
        keys = [(kind, sequence.ids.tobytes(), sequence.types.tobytes()) for sequence in sequences]
        known = {i: self._recall(key) for i, key in enumerate(keys) if cached and key in self._cache}
        fresh = {key: i for i, key in enumerate(keys) if i not in known and key not in self._jobs}
        tokens = sum(len(sequences[i].ids) for i in fresh.values())
        # A request longer than the queue is let in when it is the only one; it would never be otherwise.
        if self.waiting_tokens and self.waiting_tokens + tokens > self.most_tokens:
            raise QueueFullError(max(1, math.ceil(self.waiting_tokens / self.tokens_per_second)))
        for key, i in fresh.items():
            self._enqueue(kind, key, sequences[i])
        jobs = {i: self._jobs[key] for i, key in enumerate(keys) if i not in known}
        for job in jobs.values():
            self._join(job)
        return known, jobs

    def _enqueue(self, kind: Hashable, key: Hashable, sequence: TokenSequence) -> None:
        result = asyncio.get_running_loop().create_future()
        job = self._jobs[key] = Job(kind, key, sequence, result, next(self._numbers))
        self._lanes.setdefault(kind, deque()).append(job)
        self.work_waits.set()

    def _join(self, job: Job) -> None:
        job.waiters += 1
        if job.waiters == 1 and job.queued:
            self.waiting_tokens += job.tokens

    def _leave(self, job: Job) -> None:
        job.waiters -= 1
        if not job.waiters and job.queued:
            self.waiting_tokens -= job.tokens

    def _recall(self, key: Hashable) -> Any:
        self._cache.move_to_end(key)
        return self._cache[key]

    def _remember(self, job: Job, cached: bool) -> Any:
        result = job.result.result()
        if cached and self.cache_size:
            self._cache[job.key] = result
            self._cache.move_to_end(job.key)
            if len(self._cache) > self.cache_size:
                self._cache.popitem(last=False)
        return result
