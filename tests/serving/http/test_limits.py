"""Rates, and clients that send their bodies slowly."""

import asyncio
import hashlib
import time

import pytest

from headway.serving.http.auth import Keys
from headway.serving.http.limits import RateLimit
from headway.serving.settings import BodyLimits

KEY, OTHER_KEY = {"authorization": "Bearer key"}, {"authorization": "Bearer other"}


def test_a_rate_recovers(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = RateLimit(4.0)
    assert [rate.wait() > 0 for _ in range(5)] == [False] * 4 + [True]
    now[0] += 0.25
    assert rate.wait() == 0.0
    assert rate.wait() == pytest.approx(0.25)


def test_a_client_that_sends_its_body_too_slowly_is_cut_off(serving):
    async def run():
        async with serving("embeddings") as server:

            async def drips():
                while True:
                    yield b" "
                    await asyncio.sleep(0.2)

            response = await server.client.post("/v1/embeddings", content=drips())
            assert response.status_code == 408
            assert response.json()["error"]["type"] == "body_too_slow"
            assert response.headers["connection"] == "close"

    asyncio.run(run())


def test_a_connection_is_closed_if_the_body_is_not_read_to_its_end(serving):
    keys = Keys(frozenset({hashlib.sha256(b"key").hexdigest()}), 1.0)
    body = {"input": "A boat."}

    async def run():
        async with serving("embeddings", keys=keys) as server:
            for headers, status, ends in (({}, 401, True), (KEY, 200, False), (KEY, 429, True)):
                response = await server.client.post("/v1/embeddings", json=body, headers=headers)
                assert response.status_code == status
                assert (response.headers.get("connection") == "close") == ends
            # Nothing was to be read.
            assert "connection" not in (await server.client.get("/v1/models")).headers
            large = await server.client.post("/v1/models", content=b" " * 100_001)
            assert large.status_code == 401 and large.headers["connection"] == "close"

    asyncio.run(run())


def test_bodies_in_progress_are_bounded_and_one_client_gets_half_of_the_space(serving):
    keys = Keys(frozenset(hashlib.sha256(key).hexdigest() for key in (b"key", b"other")), None)
    limits = BodyLimits(max_bytes=10_000, waiting_bytes=20_000, timeout=5.0)

    async def run():
        async with serving("embeddings", keys=keys, bodies=limits, max_tokens=100_000) as server:
            server.replica.gate.clear()

            async def ask(number: int, headers: dict[str, str]) -> int:
                body = {"input": f"{number} " + "rose " * 1600}
                return (await server.client.post("/v1/embeddings", json=body, headers=headers)).status_code

            first = asyncio.create_task(ask(1, KEY))
            while not server.replica.packs:
                await asyncio.sleep(0.01)
            assert await ask(2, KEY) == 503
            other = asyncio.create_task(ask(3, OTHER_KEY))
            await asyncio.sleep(0.05)
            server.replica.gate.set()
            assert (await first, await other) == (200, 503)
            assert await ask(4, KEY) == 200  # the space is free again

    asyncio.run(run())


def test_the_deadline_begins_with_the_arrival_of_the_request(serving):
    """Also what is spent on the body, and on waiting for the tokenizer, is the client's time."""

    async def run():
        async with serving("embeddings", timeout=0.5) as server:

            async def slow():
                yield b'{"input": '
                await asyncio.sleep(0.6)
                yield b'"A boat."}'

            headers = {"content-type": "application/json"}
            late = await server.client.post("/v1/embeddings", content=slow(), headers=headers)
            assert late.status_code == 504
            assert not server.replica.packs

    asyncio.run(run())
