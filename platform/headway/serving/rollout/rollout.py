"""The roll-out of one served model: which version serves, which one challenges it, which are refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import NamedTuple

from headway.config.serve import ChallengerConfig
from headway.serving.rollout.challenger import Challenger
from headway.serving.rollout.kept_state import KeptState
from headway.serving.scheduling.messages import LoadedRelease, Release, ReplicaLostError
from headway.serving.scheduling.service import ModelService

_log = logging.getLogger(__name__)

Check = Callable[[Release], Awaitable[str | None]]
"""Lets every replica load and check a version; returns what is wrong with it, None if nothing is.

Raises `ReplicaLostError` if the first replica that tried died of it, or of something else at that time.
"""

_MAX_DEATHS = 3
_PAUSE_S = 5.0
"""After a death, before the next try. Whatever else kills replicas may be over by then, and a new replica is
up: with a single one, each try would otherwise cost the requests their only replica."""


class VersionState(Enum):
    """What a roll-out does with a version."""

    NEW = "new"
    """Never checked, or replaced since. It answers nothing before it has passed the check."""
    REFUSED = "refused"
    """Failed the check. It is not checked again."""
    INCAPABLE = "incapable"
    """Passed the check, but lacks an ability of the serving version. May replace it, not challenge it."""
    CHALLENGER = "challenger"
    """Answers some requests, or is compared on them."""
    SERVING = "serving"
    """Answers all other requests."""

    @property
    def may_serve(self) -> bool:
        """Whether the version may become the serving one."""
        return self is not VersionState.REFUSED

    @property
    def may_challenge(self) -> bool:
        """Whether the version may be tried beside the serving one."""
        return self not in (VersionState.REFUSED, VersionState.INCAPABLE)


class _Rejection(NamedTuple):
    state: VersionState
    reason: str


class Rollout:
    """Moves one model from version to version.

    Attributes:
        serving: answers requests.
        challenger: the version that is tried beside it, if there is one.

    Args:
        serving: the first version.
        check: of new versions.
        idle: whether a replica has nothing to do.
        refused: versions that were refused before, and why.
        on_change: called when another version serves, or one is refused.
        pause_s: seconds after a replica died of a check, before the next try.
    """

    def __init__(
        self,
        serving: ModelService,
        check: Check,
        idle: Callable[[], bool],
        refused: Mapping[Release, str] | None = None,
        on_change: Callable[[], None] = lambda: None,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self.serving = serving
        self.challenger: Challenger | None = None
        self._check, self._idle, self._on_change, self._pause_s = check, idle, on_change, pause_s
        self._rejections = {
            release: _Rejection(VersionState.REFUSED, reason) for release, reason in (refused or {}).items()
        }

    @property
    def refused(self) -> dict[str, str]:
        """Versions that were refused, and why."""
        return {release.version: rejection.reason for release, rejection in self._rejections.items()}

    @property
    def kept_state(self) -> KeptState:
        """What a gateway that takes over must know."""
        refused = {
            release: rejection.reason
            for release, rejection in self._rejections.items()
            if rejection.state is VersionState.REFUSED
        }
        return KeptState(self.serving.loaded.release, refused)

    def state_of(self, release: Release) -> VersionState:
        """The state of a version now."""
        if release == self.serving.loaded.release:
            return VersionState.SERVING
        if self.challenger is not None and release == self.challenger.release:
            return VersionState.CHALLENGER
        rejection = self._rejections.get(release)
        return VersionState.NEW if rejection is None else rejection.state

    async def switch(self, release: Release) -> str | None:
        """Serve a version, once every replica has loaded it and found it good.

        Returns:
            Why it was refused, in which case the old version stays; None if it serves now.
        """
        state = self.state_of(release)
        if state is VersionState.SERVING:
            return None
        if not state.may_serve:
            return self._rejections[release].reason
        problem = await self._checked(release)
        if problem is not None:
            return problem
        loaded = await asyncio.to_thread(LoadedRelease.open, release)
        if self.state_of(release) is VersionState.CHALLENGER:
            self.end_challenge()
        self.serving = ModelService(loaded, self.serving.queue)
        self._rejections.pop(release, None)
        self._on_change()
        return None

    async def challenge(self, release: Release | None, config: ChallengerConfig) -> str | None:
        """Try a version beside the serving one, once every replica has found it good; with None, try none.

        Returns:
            Why it was refused, in which case nothing is tried; None if it is tried, or serves already.
        """
        if release is not None and self.state_of(release) is VersionState.CHALLENGER:
            return None
        self.end_challenge()
        if release is None or self.state_of(release) is VersionState.SERVING:
            return None
        if not self.state_of(release).may_challenge:
            return self._rejections[release].reason
        problem = await self._checked(release)
        if problem is not None:
            return problem
        loaded = await asyncio.to_thread(LoadedRelease.open, release)
        if self.state_of(release) is VersionState.SERVING:  # the alias moved to it during the check
            return None
        if missing := self._missing_abilities(loaded):
            return self._reject(release, VersionState.INCAPABLE, f"it cannot {', '.join(missing)}")
        self.start_challenge(loaded, config)
        return None

    def start_challenge(self, loaded: LoadedRelease, config: ChallengerConfig) -> None:
        """Try a version that has been checked."""
        self.challenger = Challenger(loaded, lambda: self.serving, config, self._idle)
        self.challenger.start()

    def end_challenge(self) -> None:
        """Try no version."""
        if self.challenger is not None:
            self.challenger.stop()
        self.challenger = None

    def _missing_abilities(self, other: LoadedRelease) -> list[str]:
        """What another version cannot do that the serving one can."""
        able = other.description.abilities
        return [ability for ability in self.serving.loaded.description.abilities if ability not in able]

    async def _checked(self, release: Release) -> str | None:
        problem = await self._survived_check(release)
        return None if problem is None else self._reject(release, VersionState.REFUSED, problem)

    async def _survived_check(self, release: Release) -> str | None:
        """What is wrong with a version. Two deaths may have other causes; the third is blamed on it."""
        for death in range(_MAX_DEATHS):
            if death:
                await asyncio.sleep(self._pause_s)
            try:
                return await self._check(release)
            except ReplicaLostError as error:
                _log.warning("a replica died while it loaded version %s: %s", release.version, error)
        return f"{_MAX_DEATHS} replicas died while they loaded it"

    def _reject(self, release: Release, state: VersionState, reason: str) -> str:
        self._rejections[release] = _Rejection(state, reason)
        self._on_change()
        return reason
