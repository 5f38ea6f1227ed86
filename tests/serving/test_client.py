"""The client against a real server, and OpenAI's own client against the same."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import headway
from headway.client import DeadlineError, InvalidRequestError, UnauthorizedError, UnavailableError

TEXTS = ["The sailor steers the old boat before noon.", "A baker slices fresh bread.", "Quiet!"]


def asked(live: str, operation: str, model: str, **body: object) -> dict:
    answer = httpx.post(f"{live}/v1/{operation}", json={"model": model, **body}, trust_env=False)
    return answer.raise_for_status().json()


def test_embeddings_are_those_of_the_server(live):
    texts = TEXTS * 100  # more than one request may hold
    with headway.Client(live, model="embeddings") as client:
        vectors = client.embeddings(texts)
        short = client.embeddings(TEXTS, dimensions=8)
    rows = asked(live, "embeddings", "embeddings", input=TEXTS)["data"]
    expected = np.asarray([row["embedding"] for row in rows])
    assert vectors.dtype == np.float32 and vectors.shape == (300, 32) and short.shape == (3, 8)
    np.testing.assert_allclose(vectors, np.tile(expected, (100, 1)), atol=1e-5)


def test_what_is_too_much_for_one_request_is_asked_for_in_parts(live):
    """By its tokens, and by its bytes."""
    for texts in ([*TEXTS, "boat " * 100] * 60, [TEXTS[0], "boat " * 19_000] * 20):
        with headway.Client(live, model="embeddings") as client:
            vectors = client.embeddings(texts)
            one_by_one = client.embeddings(texts[:4])
        assert vectors.shape == (len(texts), 32)
        np.testing.assert_allclose(vectors[:4], one_by_one, atol=1e-5)
        np.testing.assert_allclose(vectors[-4:], one_by_one, atol=1e-5)


def test_no_texts_have_no_vectors(live):
    with headway.Client(live, model="embeddings") as client:
        vectors = client.embeddings([])
        assert vectors.dtype == np.float32 and vectors.shape == (0, 32)
        assert client.embeddings([], dimensions=8).shape == (0, 8)
        assert client.classify([]) == client.tokens([]) == client.fill_mask([]) == []
    for model in ("none", None):  # as with texts
        with headway.Client(live, model=model) as client, pytest.raises(InvalidRequestError, match="served"):
            client.embeddings([])


def test_every_operation_has_its_method(live):
    with headway.Client(live) as client:
        assert {model["id"] for model in client.models()} >= {"classify", "tokens", "answer"}
    with headway.Client(live, model="classify") as client:
        for classified, row in zip(
            client.classify(TEXTS), asked(live, "classify", "classify", input=TEXTS)["data"], strict=True
        ):
            assert classified.label == row["label"] and classified.scores == pytest.approx(row["scores"])
    with headway.Client(live, model="embeddings") as client:
        expected = asked(live, "rerank", "embeddings", query=TEXTS[0], documents=TEXTS[1:])["results"]
        assert client.rerank(TEXTS[0], TEXTS[1:]) == [
            (row["index"], pytest.approx(row["relevance_score"])) for row in expected
        ]
    with headway.Client(live, model="fill-mask") as client:
        (masks,) = client.fill_mask(["The [MASK] steers the old [MASK]."], candidates=3)
        assert [len(mask) for mask in masks] == [3, 3] and masks[0][0][1] >= masks[0][1][1]
    with headway.Client(live, model="tokens") as client:
        for text, entities in zip(TEXTS, client.tokens(TEXTS), strict=True):
            assert all(text[entity.start : entity.end] == entity.text and entity.label for entity in entities)
    with headway.Client(live, model="answer") as client:
        spans = client.answer("Who steers?", TEXTS[0], candidates=2)
        assert spans and all(TEXTS[0][span.start : span.end] == span.text for span in spans)


def test_what_is_wrong_is_a_typed_error(live):
    with headway.Client(live, model="embeddings") as client:
        with pytest.raises(InvalidRequestError, match="cannot classify") as error:
            client.classify(TEXTS)
        assert (error.value.status, error.value.kind) == (422, "not_able")
        with pytest.raises(InvalidRequestError) as error:
            client.embeddings(["x"], dimensions=0)
        assert error.value.param == "dimensions"
    with (
        headway.Client(live, model="no such") as client,
        pytest.raises(InvalidRequestError, match="not served"),
    ):
        client.embeddings(TEXTS)
    with headway.Client("http://127.0.0.1:9", patience=0.0) as client, pytest.raises(UnavailableError):
        client.models()


@pytest.fixture
def scripted() -> Iterator[tuple[str, list, list]]:
    """The address of a server that answers from a list, and what it was asked."""
    answers: list[tuple[int, dict[str, str]]] = []
    heard: list[tuple[float, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((time.monotonic(), self.headers["authorization"]))
            status, headers = answers.pop(0)
            error: dict = {"error": {"type": "some_kind", "message": "some message"}}
            body = {"data": []} if status == 200 else error
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers, heard
    server.shutdown()
    server.server_close()


def test_a_full_server_is_asked_again_when_it_says(scripted):
    url, answers, heard = scripted
    answers += [(503, {"retry-after": "1"}), (429, {}), (200, {})]
    with headway.Client(url, key="secret") as client:
        assert client.models() == []
    times = [at for at, _ in heard]
    assert times[1] - times[0] >= 1.0 and times[2] - times[1] >= 0.5
    assert {key for _, key in heard} == {"Bearer secret"}


def test_patience_ends_before_a_wait_that_would_outlast_it(scripted):
    url, answers, heard = scripted
    answers += [(503, {"retry-after": "60"}), (401, {}), (504, {})]
    with headway.Client(url, patience=5.0) as client:
        with pytest.raises(UnavailableError) as error:
            client.models()
        assert (error.value.status, error.value.kind, error.value.retry_after) == (503, "some_kind", 60.0)
        with pytest.raises(UnauthorizedError):
            client.models()
        with pytest.raises(DeadlineError):
            client.models()
    assert len(heard) == 3


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openais_own_client_gets_embeddings(live, encoding):
    client = openai.OpenAI(base_url=f"{live}/v1", api_key="any", max_retries=0)
    settings: Any = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="embeddings", input=TEXTS, **settings)
    rows = asked(live, "embeddings", "embeddings", input=TEXTS)["data"]
    vectors: list[Any] = [row.embedding for row in answer.data]
    if encoding == "base64":  # asked for in so many words, it is handed on as it came
        vectors = [np.frombuffer(base64.b64decode(row), "<f4") for row in vectors]
    np.testing.assert_allclose(np.asarray(vectors), np.asarray([row["embedding"] for row in rows]), atol=1e-5)
    assert answer.usage.total_tokens > 0
    assert "embeddings" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no such", input="x")
