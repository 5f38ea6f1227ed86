"""A version tried beside the serving one: it answers some requests, or is compared on copies of them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from headway.config.serve import ChallengerConfig
from headway.serving.rollout.comparison import Comparison
from headway.serving.scheduling.caller import Caller, DeadlinePassedError
from headway.serving.scheduling.messages import Answer, LoadedRelease, Release
from headway.serving.scheduling.queue import QueueFullError
from headway.serving.scheduling.service import ModelService

Ask = Callable[[ModelService, Caller], Coroutine[Any, Any, Answer]]
"""Asks one version the question of a request, for a caller."""

_MAX_WAITING = 64
_POLL_S = 0.01
_TIMEOUT_S = 10.0
_CALLER = "challenger"


class ShadowRequest(NamedTuple):
    """A copy of a request that was answered, to be asked of both versions.

    Attributes:
        operation: its name.
        comparison: makes an empty comparison of this operation's results.
        ask: asks a version.
    """

    operation: str
    comparison: Callable[[], Comparison]
    ask: Ask


class Challenger:
    """A challenger, and what is known of it.

    Requests are assigned by a hash of their content and of the challenger's version. So the same question is
    always answered by the same version, and a higher percentage only adds questions.

    Comparisons wait until a replica is idle. Then both versions are asked, one after the other. The answer
    that the user got is not reused: it had to wait among others, and beside its latency the challenger's
    would look good.

    Attributes:
        service: answers with the challenger.
        config: the percentages of requests.
        answered: requests it has answered.
        shed: comparisons dropped because no replica was idle.
        failed: comparisons in which one of the versions gave no answer, or one of another shape.
        problem: why the last of them failed.
        comparisons: by the operation's name.

    Args:
        challenger: the version that is tried.
        serving: returns the service of the serving version.
        config: the percentages of requests.
        idle: whether a replica has nothing to do.
    """

    def __init__(
        self,
        challenger: LoadedRelease,
        serving: Callable[[], ModelService],
        config: ChallengerConfig,
        idle: Callable[[], bool],
    ) -> None:
        self.service = ModelService(challenger, serving().queue)
        self.config = config
        self.answered = self.shed = self.failed = 0
        self.problem: str | None = None
        self.comparisons: dict[str, Comparison] = {}
        self._serving, self._idle = serving, idle
        self._compared_with = serving().loaded.release
        self._waiting: deque[tuple[ShadowRequest, float]] = deque()  # each with its deadline
        self._offered = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @property
    def release(self) -> Release:
        """The version that is tried."""
        return self.service.loaded.release

    def answers(self, content: str) -> bool:
        """Whether the challenger answers the request with this content; counts it if so."""
        chosen = self._percentile("answer", content) < self.config.percent
        self.answered += chosen
        return chosen

    def offer(self, content: str, request: ShadowRequest) -> None:
        """Compare the versions on a request, if it is among those to compare. Returns at once."""
        if self._percentile("shadow", content) >= self.config.shadow_percent:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self.shed += 1
            return
        self._waiting.append((request, time.monotonic() + _TIMEOUT_S))
        self._offered.set()

    def start(self) -> None:
        """Start comparing what is offered."""
        self._running = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop comparing."""
        if self._running is not None:
            self._running.cancel()

    def report(self) -> dict[str, Any]:
        """What an operator wants to know before the challenger takes over."""
        return {
            "version": self.release.version,
            "against": self._compared_with.version,
            "percent": self.config.percent,
            "shadow_percent": self.config.shadow_percent,
            "answered": self.answered,
            "waiting": len(self._waiting),
            "shed": self.shed,
            "failed": self.failed,
            "problem": self.problem,
            "operations": {name: one.summary() for name, one in self.comparisons.items()},
        }

    def _percentile(self, purpose: str, content: str) -> float:
        """A number from 0 to 100 that is always the same for a request."""
        digest = hashlib.blake2b(
            f"{purpose} {self.release.version} {content}".encode(errors="surrogatepass"), digest_size=8
        ).digest()
        return int.from_bytes(digest) / 2**64 * 100.0

    async def _run(self) -> None:
        while True:
            await self._offered.wait()
            while self._waiting:
                await self._compare(*self._waiting.popleft())
            self._offered.clear()

    async def _compare(self, request: ShadowRequest, deadline: float) -> None:
        served = self._serving().loaded
        if served.release != self._compared_with:
            self._compared_with, self.comparisons = served.release, {}
        try:
            ours, our_seconds = await self._ask(served, request, deadline)
            theirs, their_seconds = await self._ask(self.service.loaded, request, deadline)
            comparison = self.comparisons.get(request.operation) or request.comparison()
            comparison.add(ours.results, theirs.results)
        except (QueueFullError, DeadlinePassedError):
            self.shed += 1
        except Exception as error:  # the challenger's failures are what it is tried for
            self.failed += 1
            # Of an error in a replica, Ray puts the traceback with addresses before the line that tells it.
            self.problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        else:
            comparison.seconds.append((our_seconds, their_seconds))
            self.comparisons[request.operation] = comparison

    async def _ask(
        self, version: LoadedRelease, request: ShadowRequest, deadline: float
    ) -> tuple[Answer, float]:
        """A version's answer, and the seconds it took on an idle replica.

        Raises:
            DeadlinePassedError: no replica was idle before the deadline.
        """
        while not self._idle():
            if time.monotonic() > deadline:
                raise DeadlinePassedError
            await asyncio.sleep(_POLL_S)
        service = ModelService(version, self.service.queue, cached=False)
        started = time.perf_counter()
        answer = await request.ask(service, Caller.starting_now(_CALLER, _TIMEOUT_S))
        return answer, time.perf_counter() - started
