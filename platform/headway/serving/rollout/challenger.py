"""A version that is tried beside the one that answers: on a share of requests, or in its shadow."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from headway.config.serve import ChallengerConfig
from headway.serving.rollout.comparison import COMPARE, Comparison
from headway.serving.scheduling.messages import Answer, LoadedRelease
from headway.serving.scheduling.queue import DeadlinePassedError, QueueFullError
from headway.serving.scheduling.service import ModelService

Ask = Callable[[ModelService, float], Coroutine[Any, Any, Answer]]
"""Asks one version the question of a request, with so many seconds."""

_MOST_WAITING = 64
_LOOK_EVERY = 0.01
_SECONDS_TO_ANSWER = 10.0


class _Shadow(NamedTuple):
    operation: str
    ask: Ask
    until: float


class Trial:
    """One challenger, and what is known of it.

    A request goes to the challenger by a hash of its content and of the challenger's version, so the same
    question is answered by the same version while the trial lasts, and a greater share only adds questions.

    Comparisons wait until a replica is idle. Both versions are then asked again, one after the other: the
    user's own answer waited among others, and its latency would make the challenger look quick.

    Args:
        served: the version that answers.
        challenger: the version that is tried.
        config: shares of requests.
        idle: whether a replica has nothing to do.
    """

    def __init__(
        self,
        served: ModelService,
        challenger: LoadedRelease,
        config: ChallengerConfig,
        idle: Callable[[], bool],
    ) -> None:
        self.challenger = ModelService(challenger, served.queue)
        self.config = config
        self.answered = self.shed = self.failed = 0
        self.problem: str | None = None
        self.comparisons: dict[str, Comparison] = {}
        self._served, self._idle = served, idle
        self._against = served.current.release
        self._waiting: deque[_Shadow] = deque()
        self._offered = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def answers(self, content: str) -> bool:
        """Whether the challenger answers the request with this content."""
        chosen = self._place("answer", content) < self.config.percent
        self.answered += chosen
        return chosen

    def offer(self, operation: str, content: str, ask: Ask) -> None:
        """Compare the two versions on a request that was answered, if its turn is there; never waits."""
        if operation not in COMPARE or self._place("shadow", content) >= self.config.shadow_percent:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self.shed += 1
            return
        self._waiting.append(_Shadow(operation, ask, time.monotonic() + _SECONDS_TO_ANSWER))
        self._offered.set()

    def start(self) -> None:
        """Begin to compare what is offered."""
        self._running = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Compare no more."""
        if self._running is not None:
            self._running.cancel()

    def report(self) -> dict[str, Any]:
        """What an operator wants to know before the challenger takes over."""
        return {
            "version": self.challenger.current.release.version,
            "against": self._against.version,
            "percent": self.config.percent,
            "shadow_percent": self.config.shadow_percent,
            "answered": self.answered,
            "waiting": len(self._waiting),
            "shed": self.shed,
            "failed": self.failed,
            "problem": self.problem,
            "operations": {name: one.summary(name) for name, one in self.comparisons.items()},
        }

    def _place(self, purpose: str, content: str) -> float:
        """Where a request lies between 0 and 100."""
        version = self.challenger.current.release.version
        digest = hashlib.blake2b(
            f"{purpose} {version} {content}".encode(errors="surrogatepass"), digest_size=8
        ).digest()
        return int.from_bytes(digest) / 2**64 * 100.0

    async def _run(self) -> None:
        while True:
            await self._offered.wait()
            while self._waiting:
                await self._compare(self._waiting.popleft())
            self._offered.clear()

    async def _compare(self, shadow: _Shadow) -> None:
        served, challenger = self._served.current, self.challenger.current
        if served.release != self._against:
            self._against, self.comparisons = served.release, {}
        try:
            ours, ours_took = await self._ask(served, shadow)
            theirs, theirs_took = await self._ask(challenger, shadow)
            comparison = self.comparisons.get(shadow.operation) or Comparison()
            COMPARE[shadow.operation](comparison, ours.results, theirs.results)
        except (QueueFullError, DeadlinePassedError):
            self.shed += 1
        except Exception as error:  # of the challenger: its own affair, and what the trial is for
            self.failed += 1
            self.problem = str(error) or type(error).__name__
        else:
            comparison.seconds.append((ours_took, theirs_took))
            self.comparisons[shadow.operation] = comparison

    async def _ask(self, version: LoadedRelease, shadow: _Shadow) -> tuple[Answer, float]:
        """An answer, and the seconds that it took on an idle replica.

        Raises:
            DeadlinePassedError: no replica was idle for long.
        """
        while not self._idle():
            if time.monotonic() > shadow.until:
                raise DeadlinePassedError
            await asyncio.sleep(_LOOK_EVERY)
        service = ModelService(version, self._served.queue, cached=False)
        started = time.perf_counter()
        answer = await shadow.ask(service, _SECONDS_TO_ANSWER)
        return answer, time.perf_counter() - started
