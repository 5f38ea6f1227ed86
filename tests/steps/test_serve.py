"""The step `serve`: a classifier behind real HTTP on Ray Serve."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.inference.predictor import Predictor
from headway.steps.serve import run_serve
from ports import free_port

PORT = free_port()


@pytest.fixture(scope="module")
def served(classifier, labelled_file, runs, ray_cluster):
    """The step's result, while the server is up."""
    from ray import serve

    from headway.display import Display
    from headway.runs.context import Context
    from headway.tracking import Tracking

    config = ServeConfig.model_validate(
        {
            "model": str(classifier),
            "port": PORT,
            "replicas": 1,
            "demo_texts": 6,
            "demo_source": {"source": str(labelled_file)},
        }
    )
    folder = runs / "steps" / "serve"
    folder.mkdir(parents=True)
    yield run_serve(config, Context("steps", "serve", runs, folder, Tracking.at(runs), Display(quiet=True)))
    serve.shutdown()


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.output, timeout=30.0, trust_env=False) as client:
        yield client


def test_held_out_texts_are_asked_over_http(served):
    assert served.output == f"http://127.0.0.1:{PORT}"
    assert (served.summary["requests"], served.summary["failed"]) == (6, 0)
    assert served.summary["ready_seconds"] > 0


def test_answers_are_those_of_the_model(client, classifier, pairs):
    texts = [text for text, _ in pairs[::13]]
    data = client.post("/v1/classify", json={"input": texts}).raise_for_status().json()["data"]
    expected = Predictor(classifier).rows(texts)
    assert [row["label"] for row in data] == [answer["label"] for answer in expected]
    assert [row["score"] for row in data] == pytest.approx([answer["score"] for answer in expected], abs=0.02)
    assert [row["index"] for row in data] == list(range(len(texts)))


def test_many_clients_at_once_each_get_their_own_answer(client, classifier, pairs):
    texts = [text for text, _ in pairs]
    expected = [answer["label"] for answer in Predictor(classifier).rows(texts)]

    def ask(text: str) -> str:
        return client.post("/v1/classify", json={"input": text}).raise_for_status().json()["data"][0]["label"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, texts)) == expected


@pytest.mark.parametrize(
    "body", [{}, {"input": []}, {"input": 3}, {"input": "a", "more": 1}, {"input": ["a"] * 5000}]
)
def test_a_bad_request_is_told_and_does_no_harm(body, client):
    assert 400 <= client.post("/v1/classify", json=body).status_code < 500
    assert client.post("/v1/classify", json={"input": "a boat"}).status_code == 200


def test_the_server_says_that_it_is_ready(client):
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_a_port_that_is_taken_is_refused(classifier, make_context, runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = ServeConfig(model=str(classifier), port=port)
        with pytest.raises(ConfigError, match=rf"port: cannot listen on 127\.0\.0\.1:{port}"):
            run_serve(config, make_context("serve", runs))
