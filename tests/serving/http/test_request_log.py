"""Ids of requests, the access log, the server's own errors, readiness, and where the time goes."""

import asyncio
import json
import logging
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headway.serving.http.request_log import ACCESS_LOG
from headway.serving.scheduling.messages import ReplicaLostError

SECRET = "The sailor steers the old boat, secretly."


@pytest.fixture
def access(caplog):
    """The lines of the access log so far."""
    caplog.set_level(logging.INFO, ACCESS_LOG)
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == ACCESS_LOG]


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_every_answer_has_the_id_of_its_request(serving, access):
    async def run():
        async with serving("embeddings") as server:
            for content, status in ((b'{"input": "a"}', 200), (b"{", 422)):
                headers = {"x-request-id": "order-66/a", "content-type": "application/json"}
                answer = await server.client.post("/v1/embeddings", content=content, headers=headers)
                assert (answer.status_code, answer.headers["x-request-id"]) == (status, "order-66/a")
            for given in ("", "two words", "x" * 129):
                answer = await server.client.get("/health/live", headers={"x-request-id": given})
                assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
            assert (await server.client.get("/nowhere")).headers["x-request-id"] == access()[-1]["id"]

    asyncio.run(run())


def test_the_access_log_has_a_line_a_request_and_no_text(serving, access, caplog):
    async def run():
        async with serving("embeddings") as server:
            started = time.perf_counter()
            await server.post("embeddings", input=SECRET)
            await server.post("classify", 422, input=SECRET)
            await server.client.get(f"/v1/{SECRET}?text={SECRET}")
            took_ms = 1e3 * (time.perf_counter() - started)
        lines = access()
        assert [(line["method"], line["path"], line["status"]) for line in lines] == [
            ("POST", "/v1/embeddings", 200),
            ("POST", "/v1/classify", 422),
            ("GET", "other", 404),
        ]
        assert all(0.0 < line["milliseconds"] < took_ms and line["client"] for line in lines)
        assert len({line["id"] for line in lines}) == 3
        assert "secretly" not in caplog.text

    asyncio.run(run())


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_an_error_of_the_servers_own_is_plain_counted_and_logged_by_its_id(
    serving, access, caplog, content_type
):
    async def run():
        async with serving("embeddings") as server:
            server.replica.failures += [RuntimeError("ray::Encoder (pid=17, ip=10.1.2.3)\nTraceback")] * 2
            headers = {"content-type": content_type}
            answer = await server.client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
            assert answer.status_code == 500
            name = answer.headers["x-request-id"]
            assert answer.json()["error"] == {
                "type": "internal",
                "message": f"the server failed; its log tells of request {name}",
                "param": None,
            }
            (record,) = (record for record in caplog.records if record.exc_info)
            assert name in record.message and "10.1.2.3" in str(record.exc_info[1])
            assert access()[-1]["status"] == 500
            text = (await server.client.get("/metrics")).text
            assert samples(text, "headway_requests_total")["/v1/embeddings", "500"] == 1.0

    asyncio.run(run())


def test_a_client_is_told_no_address_when_replicas_are_lost(serving):
    async def run():
        async with serving("embeddings") as server:
            server.dispatcher.pause = 0.0
            server.replica.failures += [ReplicaLostError("actor at 10.1.2.3 died")] * 30
            error = (await server.post("embeddings", 503, input="a"))["error"]
            assert error["type"] == "no_replica" and "10.1.2.3" not in error["message"]
            server.replica.failures[:] = [TimeoutError()] * 30
            assert (await server.post("embeddings", 503, input="b"))["error"]["type"] == "no_replica"

    asyncio.run(run())


def test_a_server_is_ready_when_every_model_has_a_replica(serving):
    names: list[str] = []

    async def missing() -> list[str]:
        return names

    async def run():
        async with serving("embeddings", missing=missing) as server:
            assert (await server.client.get("/health/ready")).status_code == 200
            names.append("tiny")
            answer = await server.client.get("/health/ready")
            assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
            assert answer.json()["error"]["message"] == "no replica is up of tiny"
            assert (await server.client.get("/health/live")).status_code == 200

    asyncio.run(run())


def test_the_time_of_each_stage_is_measured(serving):
    async def run():
        async with serving("embeddings") as server:
            server.replica.gate.clear()
            first = asyncio.create_task(server.post("embeddings", input="a"))
            await asyncio.sleep(0.3)
            server.replica.gate.set()
            await first
            await server.post("embeddings", input=["b", "c"])
            text = (await server.client.get("/metrics")).text
        counts = samples(text, "headway_stage_seconds_count")
        assert counts["tiny", "wait"] == counts["tiny", "tokenize"] == 2.0
        assert counts["tiny", "queue"] == 3.0 and counts["tiny", "compute"] >= 2.0
        assert samples(text, "headway_stage_seconds_sum")["tiny", "compute"] >= 0.3

    asyncio.run(run())
