"""Rates, and clients that send their bodies slowly."""

import asyncio
import time

import pytest

from headway.serving.http.limits import RateLimit


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

    asyncio.run(run())
