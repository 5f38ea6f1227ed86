"""What keeps strangers out, on a real deployment: TLS, keys stored as digests only, logs without texts."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from click.testing import CliRunner

import headway
from certificates import write_certificate
from headway.cli.main import main
from headway.client import UnauthorizedError
from headway.config.serve import ServeConfig
from headway.serving.deploy import deploy, undeploy
from headway.serving.scheduling.messages import Release
from ports import free_port
from waiting import PATIENCE, wait_until

SECRET = "the patient's name is Ishmael"


class Server(NamedTuple):
    url: str
    key: str
    certificate: Path
    folder: Path

    def client(self, **headers: str) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=self.url, verify=trusted, headers=headers, timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(
    ray_cluster: None, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("secured")
    certificate, private_key = write_certificate(folder)
    made = CliRunner().invoke(main, ["key", "alice"])
    (folder / "keys.txt").write_text(made.stdout)
    config = ServeConfig(
        model="x",
        replicas=(1, 1),
        port=free_port(),
        api_keys_file=folder / "keys.txt",
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    url = deploy(config, [Release("tiny", "1", str(folders["embeddings"]))], 1)
    yield Server(url, made.stderr.split()[-1], certificate, folder)
    undeploy()


def test_only_a_digest_of_a_key_is_kept(server):
    kept = (server.folder / "keys.txt").read_text()
    assert kept.splitlines()[0] == f"{hashlib.sha256(server.key.encode()).hexdigest()} alice"
    assert server.key not in kept


def test_nothing_is_said_in_clear_text(server):
    assert server.url.startswith("https://")
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https", "http") + "/health/live", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{server.url}/health/live", trust_env=False)


def test_who_holds_a_key_is_answered(server, monkeypatch):
    with server.client() as stranger:
        assert stranger.get("/health/ready").status_code == 200
        assert stranger.post("/v1/embeddings", json={"input": "x"}).status_code == 401
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    with headway.Client(server.url, server.key) as client:
        assert client.embeddings(["The sailor.", "A baker."]).shape == (2, 32)
    with headway.Client(server.url, "another") as client, pytest.raises(UnauthorizedError):
        client.embeddings(["The sailor."])


def test_a_key_that_is_added_may_ask_without_a_restart(server):
    made = CliRunner().invoke(main, ["key", "bob"])
    with server.client(authorization=f"Bearer {made.stderr.split()[-1]}") as client:
        assert client.get("/v1/models").status_code == 401
        with (server.folder / "keys.txt").open("a") as keys:
            keys.write(made.stdout)
        wait_until(lambda: client.get("/v1/models").status_code == 200)
    with server.client(authorization=f"Bearer {server.key}") as client:
        assert client.get("/v1/models").status_code == 200


def test_an_operator_can_measure_it(server, tmp_path):
    (tmp_path / "texts.txt").write_text("The sailor steers.\nA baker slices bread.\n")
    counts = ["--file", str(tmp_path / "texts.txt"), "--clients", "4", "--requests", "40", "--texts", "2"]

    def measure(key: str) -> tuple[int, dict[str, float]]:
        done = subprocess.run(
            [sys.executable, "-m", "headway.cli.main", "load-test", f"{server.url}/v1/embeddings", *counts],
            env=os.environ | {"SSL_CERT_FILE": str(server.certificate), "HEADWAY_KEY": key},
            capture_output=True,
            text=True,
        )
        return done.returncode, json.loads(done.stdout)

    code, figures = measure(server.key)
    assert (code, figures["requests"], figures["failed"], figures["statuses"]) == (0, 40, 0, {"200": 40})
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] and figures["texts_per_second"] > 0
    code, figures = measure("another")
    assert (code, figures["failed"], figures["statuses"]) == (1, 40, {"401": 40})


def test_no_text_and_no_key_is_logged(server):
    import ray

    with server.client(authorization=f"Bearer {server.key}") as client:
        assert client.post("/v1/embeddings", json={"input": SECRET}).status_code == 200
        assert client.post("/v1/classify", json={"input": SECRET}).status_code == 422
        assert client.post("/v1/embeddings", json={"input": {"text": SECRET}}).status_code == 422
        assert client.post("/v1/embeddings", content=f'{{"input": "{SECRET}').status_code == 422
        assert client.get("/v1/models", params={"text": SECRET}).status_code == 200
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    contents = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    of_gateway = [path for path in contents if "_Gateway_" in path.name]
    assert of_gateway, "these are not the server's logs"
    for hidden in (SECRET, SECRET.replace(" ", "%20"), SECRET.replace(" ", "+"), server.key):
        assert [path for path, content in contents.items() if hidden.encode() in content] == []
