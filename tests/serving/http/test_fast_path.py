"""The short way gives the answers of FastAPI's, and leaves to FastAPI what is not well-formed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headway.serving.scheduling.messages import ReplicaLostError

LONG_WAY = {"content-type": "application/json; charset=utf-8"}
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
    """Status, content and own headers of the short way's answer and of FastAPI's."""
    answers = []
    for content_type in ({"content-type": "application/json"}, LONG_WAY):
        answer = await server.client.post(f"/v1/{path}", content=content, headers=content_type)
        own = {name: value for name, value in answer.headers.items() if name != "date"}
        answers.append((answer.status_code, answer.json(), own))
    return answers[0], answers[1]


def passed_to_fastapi(server: Any) -> list[str]:
    """Paths that FastAPI serves from now on."""
    short_way, seen = server.client._transport.app.app, []
    fastapi = short_way._app

    class Recording:
        state = fastapi.state

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await fastapi(scope, receive, send)

    short_way._app = Recording()
    return seen


@pytest.mark.parametrize("ability", ["embeddings", "classify"])
def test_answers_are_those_of_fastapi(serving, ability):
    async def run():
        async with serving(ability) as server:
            seen = passed_to_fastapi(server)
            for path, body in WELL_FORMED:
                short, long = await both_ways(server, path, json.dumps(body).encode())
                assert short == long
            assert len(seen) == len(WELL_FORMED), "each went the short way once, and FastAPI's once"

    asyncio.run(run())


def test_what_is_not_well_formed_is_fastapis_to_tell(serving):
    async def run():
        async with serving("embeddings") as server:
            contents = [(path, json.dumps(body).encode()) for path, body in MALFORMED]
            contents += [("embeddings", b'{"input": "\xff"}'), ("embeddings", b"{"), ("embeddings", b"")]
            for path, content in contents:
                short, long = await both_ways(server, path, content)
                assert short == long and short[0] in (400, 422)
                assert short[1]["error"]["type"] == "invalid_request"
            assert (await server.client.get("/v1/embeddings")).status_code == 405

    asyncio.run(run())


def test_what_nobody_expects_is_500_and_reaches_the_servers_log(serving):
    async def run():
        async with serving("embeddings") as server:
            server.replica.failures += [ReplicaLostError("gone"), KeyError("broken")]
            short_way = server.client._transport.app.app
            status: list[int] = []

            messages = [{"type": "http.request", "body": b'{"input": "x"}', "more_body": False}]

            async def receive() -> Any:
                return messages.pop() if messages else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                status.append(message.get("status", 0))

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}
            with pytest.raises(KeyError, match="broken"):
                await short_way(scope | {"query_string": b""}, receive, send)
            assert status[0] == 500

    asyncio.run(run())
