"""The server against its own OpenAPI description, and against a thousand malformed bodies."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS

from headway.serving.http.operations import OPERATIONS

PATHS = [f"/v1/{operation.name}" for operation in OPERATIONS]


@pytest.fixture(scope="session")
def api(live: str):
    return schemathesis.openapi.from_url(f"{live}/openapi.json")


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/metrics"])
def test_every_answer_is_as_documented(api, path):
    operation = api[path]["POST" if path in PATHS else "GET"]
    names = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    ]
    checks = CHECKS.get_by_names(names)

    @given(case=operation.as_strategy())
    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case):
        case.call_and_validate(checks=checks)

    check()


def malformed(rng: random.Random) -> Iterator[bytes]:
    """Bodies that are broken in many ways, without end."""
    values: list[Any] = [
        None,
        True,
        -1,
        1e308,
        "\ud800",
        "\x00",
        [],
        {},
        [[]],
        {"a": 1},
        ["a", 3],
        "a" * 100_001,
        ["x"] * 300,
    ]
    fields = [
        "input",
        "model",
        "query",
        "documents",
        "question",
        "context",
        "candidates",
        "tokens",
        "dimensions",
    ]
    while True:
        body = {rng.choice(fields): rng.choice(values) for _ in range(rng.randint(0, 4))}
        whole = json.dumps(body).encode()
        yield whole
        yield whole.replace(b'"', b"'")
        yield whole[: rng.randint(0, len(whole))]
        yield bytes(rng.randrange(256) for _ in range(rng.randint(1, 200)))
        yield b'{"input": "' + bytes([rng.randrange(128, 256)]) * 9 + b'"}'
        yield b'{"input": ' + rng.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999"]) + b"}"
        depth = rng.randint(10, 100_000)
        yield b'{"input": ' + b"[" * depth + b"]" * depth + b"}"
        yield b" " * 2_000_001


def memory() -> int:
    """Bytes that this process, the server in it, holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_thousand_malformed_bodies_do_no_harm(live):
    bodies, rng = malformed(random.Random(0)), random.Random(1)
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=live, timeout=30.0, trust_env=False) as client:

        def send(count: int) -> None:
            for _ in range(count):
                headers = {
                    "content-type": rng.choice(["application/json", "text/plain", "application/x-www-form"])
                }
                status = client.post(rng.choice(PATHS), content=next(bodies), headers=headers).status_code
                statuses[status] = statuses.get(status, 0) + 1

        send(300)
        before = memory()
        send(700)
        assert memory() - before < 30_000_000
        assert set(statuses) <= {400, 404, 413, 422}, statuses
        good = client.post("/v1/embeddings", json={"input": "a boat", "model": "embeddings"})
        assert good.status_code == 200


def test_clients_that_dawdle_or_leave_do_no_harm(live):
    address = (urlsplit(live).hostname, urlsplit(live).port)
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"content-length: 40\r\n\r\n"
    with socket.create_connection(address) as slow:
        slow.sendall(head + b'{"input"')
        assert b" 408 " in slow.recv(1000)
    for _ in range(50):
        with socket.create_connection(address) as leaver:
            leaver.sendall(head + b'{"input": "a boat", "model":"embeddings"}')
    for start in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(address) as stranger:
            stranger.sendall(start)
    time.sleep(0.2)
    body = {"input": "a boat", "model": "embeddings"}
    assert httpx.post(f"{live}/v1/embeddings", json=body, trust_env=False).status_code == 200
