"""The fast path gives the same answers as FastAPI, and leaves to it what is not well-formed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from headway.serving.http.fast_path import FastPath
from headway.serving.scheduling.messages import ReplicaLostError

THROUGH_FASTAPI = {"content-type": "application/json; charset=utf-8"}
WELL_FORMED = [
    ("embeddings", {"input": "The sailor steers."}),
    ("embeddings", {"input": ["A baker.", "Quiet!"], "encoding_format": "base64", "dimensions": 8}),
    ("embeddings", {"input": "word " * 200, "overlong": "reject"}),
    ("embeddings", {"input": "x", "model": "other"}),
    ("rerank", {"query": "bread", "documents": ["boat", "bread"], "top_n": 1, "return_documents": True}),
    ("classify", {"input": "The sailor steers."}),
    ("attention", {"input": "Quiet!", "tokens": 8}),
]
MALFORMED: list[tuple[str, Any]] = [
    ("embeddings", {"input": 3}),
    ("embeddings", {"input": "x", "more": 1}),
    ("embeddings", {"input": []}),
    ("rerank", {"query": "x"}),
    ("attention", {"input": "x", "tokens": 1}),
]


async def both_ways(server: Any, path: str, content: bytes) -> tuple[Any, Any]:
    """Status, content and headers of the fast path's answer and of FastAPI's."""
    answers = []
    for content_type in ({"content-type": "application/json"}, THROUGH_FASTAPI):
        named = content_type | {"x-request-id": "same"}
        answer = await server.client.post(f"/v1/{path}", content=content, headers=named)
        headers = {name: value for name, value in answer.headers.items() if name != "date"}
        answers.append((answer.status_code, answer.json(), headers))
    return answers[0], answers[1]


def fast_path_of(server: Any) -> FastPath:
    """The fast path, inside the other middleware."""
    app = server.client._transport.app
    while not isinstance(app, FastPath):
        app = app.app
    return app


def passed_to_fastapi(server: Any) -> list[str]:
    """Paths that FastAPI serves from now on."""
    fast_path, seen = fast_path_of(server), []
    fastapi: Any = fast_path._app

    class Recording:
        state = fastapi.state

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await fastapi(scope, receive, send)

    fast_path._app = Recording()  # type: ignore[assignment]
    return seen


@pytest.mark.parametrize("ability", ["embeddings", "classify"])
def test_answers_are_those_of_fastapi(serving, ability):
    async def run():
        async with serving(ability) as server:
            seen = passed_to_fastapi(server)
            for path, body in WELL_FORMED:
                fast, slow = await both_ways(server, path, json.dumps(body).encode())
                assert fast == slow
            assert len(seen) == len(WELL_FORMED), "each took the fast path once, and FastAPI once"

    asyncio.run(run())


def test_fastapi_says_what_is_not_well_formed(serving):
    async def run():
        async with serving("embeddings") as server:
            contents = [(path, json.dumps(body).encode()) for path, body in MALFORMED]
            contents += [("embeddings", b'{"input": "\xff"}'), ("embeddings", b"{"), ("embeddings", b"")]
            for path, content in contents:
                fast, slow = await both_ways(server, path, content)
                assert fast == slow and fast[0] in (400, 422)
                assert fast[1]["error"]["type"] == "invalid_request"
            assert (await server.client.get("/v1/embeddings")).status_code == 405

    asyncio.run(run())


def test_an_unexpected_exception_is_500_and_reaches_the_servers_log(serving):
    async def run():
        async with serving("embeddings") as server:
            server.replica.failures += [ReplicaLostError("gone"), KeyError("broken")]
            fast_path = fast_path_of(server)
            status: list[int] = []

            messages = [{"type": "http.request", "body": b'{"input": "x"}', "more_body": False}]

            async def receive() -> Any:
                return messages.pop() if messages else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                status.append(message.get("status", 0))

            headers = [(b"content-type", b"application/json")]
            scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
            scope |= {"headers": headers, "state": {"arrived": time.monotonic()}}
            with pytest.raises(KeyError, match="broken"):
                await fast_path(scope | {"query_string": b""}, receive, send)
            assert status[0] == 500

    asyncio.run(run())
