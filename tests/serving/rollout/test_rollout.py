"""The roll-out of a model: which of its versions serve, challenge or are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headway.config.serve import ChallengerConfig
from headway.serving.rollout.kept_state import dump_states, load_states
from headway.serving.rollout.rollout import Rollout, VersionState
from headway.serving.scheduling.messages import Release

TRIED = ChallengerConfig(alias="challenger", percent=50)


@pytest.fixture
def rolled_out(serving, folders) -> Callable[[Callable[..., Awaitable[None]]], None]:
    """Runs a check on the roll-out of a classifier at version 7, with a function that makes releases."""

    def release(version: str, ability: str = "classify") -> Release:
        return Release("tiny", version, str(folders[ability]))

    def run(check: Callable[..., Awaitable[None]]) -> None:
        async def inside() -> None:
            async with serving("classify") as server:
                await check(server, server.rollout, release)

        asyncio.run(inside())

    return run


def test_a_version_serves_once_it_has_been_checked(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        assert rollout.state_of(release("7")) is VersionState.SERVING
        assert rollout.state_of(release("8")) is VersionState.NEW
        assert await rollout.switch(release("8")) is None
        assert rollout.state_of(release("8")) is VersionState.SERVING
        assert rollout.state_of(release("7")) is VersionState.NEW
        assert await rollout.switch(release("8")) is None
        assert await rollout.switch(release("7")) is None
        assert server.replica.checked == ["8", "7"]

    rolled_out(check)


def test_a_version_that_fails_its_check_is_refused_and_not_checked_again(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        server.replica.problems["8"] = "it is wrong"
        for _ in range(2):
            assert await rollout.switch(release("8")) == "it is wrong"
            assert await rollout.challenge(release("8"), TRIED) == "it is wrong"
        assert server.replica.checked == ["8"]
        state = rollout.state_of(release("8"))
        assert state is VersionState.REFUSED and not state.may_serve and not state.may_challenge
        assert rollout.refused == {"8": "it is wrong"} and rollout.challenger is None
        assert rollout.state_of(release("7")) is VersionState.SERVING

    rolled_out(check)


def test_a_version_that_kills_three_replicas_is_refused_and_two_deaths_are_not_held_against_it(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        server.replica.deaths["8"] = 5
        reason = "3 replicas died while they loaded it"
        for _ in range(2):
            assert await rollout.switch(release("8")) == reason
        assert server.replica.checked == ["8"] * 3 and rollout.refused == {"8": reason}
        server.replica.deaths["9"] = 2
        assert await rollout.switch(release("9")) is None
        assert rollout.state_of(release("9")) is VersionState.SERVING

    rolled_out(check)


def test_what_serves_and_what_is_refused_outlives_the_roll_out(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        kept: list[bytes] = []
        rollout._on_change = lambda: kept.append(dump_states({"tiny": rollout.kept_state}))
        server.replica.problems["8"] = "it is wrong"
        await rollout.switch(release("8"))
        await rollout.switch(release("9"))
        assert len(kept) == 2
        state = load_states(kept[-1])["tiny"]
        assert state.serving == release("9") and state.refused == {release("8"): "it is wrong"}
        server.replica.checked.clear()
        after = Rollout(rollout.serving, server.replica.check, lambda: True, state.refused)
        assert await after.switch(release("8")) == "it is wrong"
        assert server.replica.checked == [] and after.refused == {"8": "it is wrong"}
        assert load_states(None) == {}

    rolled_out(check)


def test_a_version_that_lacks_an_ability_may_replace_the_serving_one_but_not_challenge_it(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        other = release("8", "embeddings")
        assert await rollout.challenge(other, TRIED) == "it cannot classify"
        assert rollout.state_of(other) is VersionState.INCAPABLE
        assert rollout.refused == {"8": "it cannot classify"}
        assert await rollout.challenge(other, TRIED) == "it cannot classify"
        assert await rollout.switch(other) is None
        assert rollout.state_of(other) is VersionState.SERVING and rollout.refused == {}

    rolled_out(check)


def test_a_challenger_that_takes_over_is_no_longer_tried(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        assert await rollout.challenge(release("8"), TRIED) is None
        tried = rollout.challenger
        assert rollout.state_of(release("8")) is VersionState.CHALLENGER
        assert await rollout.challenge(release("8"), TRIED) is None and rollout.challenger is tried
        assert await rollout.switch(release("8")) is None
        assert rollout.challenger is None
        assert rollout.state_of(release("8")) is VersionState.SERVING
        assert await rollout.challenge(release("8"), TRIED) is None and rollout.challenger is None

    rolled_out(check)


def test_a_challenger_goes_when_no_version_has_its_alias(rolled_out):
    async def check(server: Any, rollout: Rollout, release: Any) -> None:
        await rollout.challenge(release("8"), TRIED)
        assert await rollout.challenge(None, TRIED) is None
        assert rollout.challenger is None and rollout.state_of(release("8")) is VersionState.NEW

    rolled_out(check)
