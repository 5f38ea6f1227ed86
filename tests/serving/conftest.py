"""Tiny encoders with every head, and the application over one of them without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from encoder_folders import save_bert
from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.model import EncoderModel
from headway.serving.http.app import Missing, add_middleware, build_app
from headway.serving.http.auth import Keys
from headway.serving.metrics import Metrics
from headway.serving.rollout.rollout import Rollout
from headway.serving.scheduling.dispatch import Dispatcher
from headway.serving.scheduling.messages import LoadedRelease, Release, ReplicaLostError, Reply
from headway.serving.scheduling.queue import Stage, TokenQueue
from headway.serving.scheduling.service import ModelService
from headway.serving.settings import BodyLimits
from ports import free_port
from unready import nothing_missing

SENTENCES = [
    "The sailor steers the old boat before noon.",
    "A baker slices fresh bread every morning.",
    "The florist waters a small rose in the evening; the child plants an apple.",
    "Captain Ahab hunts the white whale near Nantucket, says Herman Melville.",
    "Quiet!",
    "Who anchors the ferry? The pilot does, once more.",
]
BODIES = BodyLimits(max_bytes=100_000, timeout=2.0)
HEADS = {
    "embeddings": "BertModel",
    "classify": "BertForSequenceClassification",
    "fill-mask": "BertForMaskedLM",
    "tokens": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
}
LABELS = {
    "classify": ["kitchen", "harbour", "garden"],
    "tokens": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny random encoder for each head, all with the same tokenizer."""
    tokenizer = train_tokenizer(SENTENCES * 5, vocab_size=400, lowercase=True, max_length=32)
    root = tmp_path_factory.mktemp("encoders")
    for number, (ability, architecture) in enumerate(HEADS.items()):
        labels = LABELS.get(ability, ["no", "yes"])
        shape = {"max_position_embeddings": 32, "initializer_range": 0.3}
        save_bert(root / ability, tokenizer, architecture, labels, seed=number, **shape)
    return {ability: root / ability for ability in HEADS}


class LocalReplica:
    """A replica in this process; what it computed is kept, and it can be made to fail or to wait."""

    def __init__(self) -> None:
        self.models: dict[Release, EncoderModel] = {}
        self.packs: list[Any] = []
        self.failures: list[BaseException] = []
        self.problems: dict[str, str] = {}
        self.deaths: dict[str, int] = {}
        self.checked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def check(self, release: Release) -> str | None:
        """What is wrong with a version, by `problems`; it kills as many replicas before as `deaths` says."""
        self.checked.append(release.version)
        if self.deaths.get(release.version):
            self.deaths[release.version] -= 1
            raise ReplicaLostError("ActorDiedError")
        return self.problems.get(release.version)

    async def call(self, kind: Any, pack: Any) -> Reply:
        """Compute a pack in a thread."""
        self.packs.append((kind, pack))
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        if kind.release not in self.models:
            self.models[kind.release] = EncoderModel(Path(kind.release.folder), "fp32")
        results = await asyncio.to_thread(self.models[kind.release].run, kind.operation, pack)
        return Reply("local", results)


class LocalServer:
    """The application over one model, with a client."""

    def __init__(
        self, client: httpx.AsyncClient, replica: LocalReplica, rollout: Rollout, dispatcher: Dispatcher
    ) -> None:
        self.client, self.replica = client, replica
        self.rollout, self.dispatcher = rollout, dispatcher

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """The JSON of an answer with this status."""
        response = await self.client.post(f"/v1/{path}", json=body)
        assert response.status_code == status, response.text
        return response.json()


@pytest.fixture(scope="session")
def live(folders: dict[str, Path]) -> Iterator[str]:
    """The address of a real HTTP server in this process: an encoder, and the same with each head."""
    loop, port = asyncio.new_event_loop(), free_port()
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        rollouts, running = {}, []
        for ability, folder in folders.items():
            release = Release(ability, "7", str(folder))
            queue = TokenQueue(pack_tokens=256, max_tokens=10_000)
            replica = LocalReplica()
            dispatcher = Dispatcher(queue, replica.call)
            service = ModelService(LoadedRelease.open(release), queue)
            rollouts[ability] = Rollout(service, replica.check, lambda: False)
            running.append(asyncio.create_task(dispatcher.run()))
        metrics = Metrics()
        app = build_app(rollouts, metrics, 20.0, nothing_missing)
        whole = add_middleware(app, metrics, None, BodyLimits(2_000_000, timeout=2.0))
        # As the gateway does: what a client leaves hanging does not keep the server from its end.
        config = uvicorn.Config(
            whole, port=port, log_level="error", lifespan="off", timeout_graceful_shutdown=5
        )
        servers.append(uvicorn.Server(config))
        await servers[0].serve()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    while not (servers and servers[0].started):
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    servers[0].should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving(folders: dict[str, Path]) -> Callable[..., Any]:
    """A context manager that serves the encoder with some ability in this process."""

    @contextlib.asynccontextmanager
    async def serve(
        ability: str,
        *,
        folder: Path | None = None,
        keys: Keys | None = None,
        timeout: float = 20.0,
        missing: Missing = nothing_missing,
        bodies: BodyLimits = BODIES,
        **queue: int,
    ) -> AsyncIterator[LocalServer]:
        release = Release("tiny", "7", str(folder or folders[ability]))
        replica, metrics = LocalReplica(), Metrics()

        def on_stage(stage: Stage, seconds: float) -> None:
            metrics.stages.labels("tiny", stage).observe(seconds)

        limits = {"pack_tokens": 256, "max_tokens": 10_000, "cache_size": 0} | queue
        tokens = TokenQueue(
            limits["pack_tokens"], limits["max_tokens"], limits["cache_size"], on_stage=on_stage
        )
        dispatcher = Dispatcher(tokens, replica.call)
        service = ModelService(LoadedRelease.open(release), tokens)
        rollout = Rollout(service, replica.check, lambda: dispatcher.idle, pause_s=0.0)
        app = build_app({"tiny": rollout}, metrics, timeout, missing)
        whole = add_middleware(app, metrics, keys, bodies)
        running = asyncio.create_task(dispatcher.run())
        try:
            transport = httpx.ASGITransport(whole, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                yield LocalServer(client, replica, rollout, dispatcher)
        finally:
            running.cancel()

    return serve
