"""The gateway: a Ray Serve deployment that speaks HTTP itself and hands packs to the replicas.

Ray Serve's own proxy would pass every request through two more processes, one by one; here a request is
read, tokenised and queued in one, and what crosses to a replica is a pack of many. Retries belong here,
too: the gateway still has what a dead replica was computing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import uvicorn
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from headway.config.serve import ChallengerConfig
from headway.inference.packing import Pack
from headway.serving.http.app import build_app
from headway.serving.http.fast_path import ShortWay
from headway.serving.http.guard import Guard, Keys
from headway.serving.metrics import Metrics
from headway.serving.rollout.challenger import Trial
from headway.serving.scheduling.dispatch import Dispatcher
from headway.serving.scheduling.messages import Kind, LoadedRelease, Release, ReplicaLostError, Reply
from headway.serving.scheduling.queue import TokenQueue
from headway.serving.scheduling.service import ModelService
from headway.serving.settings import GatewaySettings

_STATE_EVERY = 0.5


class Gateway:
    """Serves HTTP on its address until Ray Serve stops it."""

    def __init__(
        self,
        settings: GatewaySettings,
        releases: Mapping[str, Release],
        encoders: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        # First: Ray Serve calls `__del__` also where a version cannot be read.
        self._server: _Server | None = None
        self._settings = settings
        self._encoders = dict(encoders)
        self._releases = {name: LoadedRelease.open(release) for name, release in releases.items()}
        self._metrics = Metrics()
        self._refused: dict[Release, str] = {}
        self._models: dict[str, _Model] = {}
        _collect_seldom()
        self._tasks: list[asyncio.Task[Any]] = []
        self._draining = False
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, if that has not begun yet; returns when clients can connect."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def switch(self, release: Release) -> str | None:
        """Let a version take over, once every replica has loaded it and found it good.

        Returns:
            Why it was refused, and the old one stays; None when it answers from now on.
        """
        model = self._models[release.name]
        if model.service.current.release == release:
            return None
        if release in self._refused:
            return self._refused[release]
        problem = await self._checked(release)
        if problem is None:
            model.service.current = await asyncio.to_thread(LoadedRelease.open, release)
            self._show_versions()
            model.service.refused.pop(release.version, None)
            if model.service.tries(release):
                model.service.end_trial()
        return problem

    async def challenge(self, name: str, release: Release | None, config: ChallengerConfig) -> str | None:
        """Try a version beside the one that answers, once all replicas have found it good; with None, none.

        Returns:
            Why it was refused, and nothing is tried; None when it is tried, or answers already.
        """
        model = self._models[name]
        if model.service.tries(release):
            return None
        model.service.end_trial()
        if release is None or release == model.service.current.release:
            return None
        if release.version in model.service.refused:
            return model.service.refused[release.version]
        problem = await self._checked(release)
        if problem is not None:
            return problem
        loaded = await asyncio.to_thread(LoadedRelease.open, release)
        if release == model.service.current.release:  # it has taken over meanwhile
            return None
        if lacking := model.service.lacking(loaded):
            model.service.refused[release.version] = lacking
            return lacking
        model.service.trial = Trial(model.service, loaded, config, lambda: model.dispatcher.idle)
        model.service.trial.start()
        return None

    async def check_health(self) -> None:
        """Ray Serve restarts a gateway that fails this."""
        if self._starting is None:
            await self.start()
        if not self._draining and any(task.done() for task in self._tasks):
            raise RuntimeError("the gateway has stopped listening")

    async def drain(self) -> None:
        """Take no new connections, and return when what has come is answered."""
        if self._server is not None:
            self._draining = self._server.should_exit = True
            await asyncio.wait(self._tasks[:1], timeout=self._settings.request_timeout_s)

    async def __del__(self) -> None:
        """Ray Serve awaits this before it stops a replica."""
        await self.drain()

    async def _start(self) -> None:
        for name, release in self._releases.items():
            self._models[name] = self._make(release)
        self._show_versions()
        services = {name: model.service for name, model in self._models.items()}
        app = build_app(services, self._metrics, self._settings.request_timeout_s, lambda: True)
        self._server = _server(self._settings, self._guard(app))
        listener = _listener(self._settings.host, self._settings.port)
        self._tasks = [
            asyncio.create_task(self._server.serve([listener])),
            *(asyncio.create_task(model.dispatcher.run()) for model in self._models.values()),
            asyncio.create_task(self._watch_state()),
        ]
        while not self._server.started:
            if self._tasks[0].done():
                raise RuntimeError(f"{self._settings.host}:{self._settings.port} cannot be listened on")
            await asyncio.sleep(0.01)

    def _guard(self, app: Any) -> Guard:
        settings = self._settings
        keys = (
            Keys(frozenset(settings.key_digests), settings.requests_per_second)
            if settings.key_digests
            else None
        )
        return Guard(ShortWay(app), self._metrics, keys, settings.max_body, settings.body_timeout)

    def _make(self, release: LoadedRelease) -> _Model:
        settings, name = self._settings, release.release.name
        queue = TokenQueue(settings.pack_tokens, settings.queue_tokens, settings.cache_size)
        encoder = self._encoders[name]

        async def call(kind: Kind, pack: Pack) -> Reply:
            try:
                return await encoder.compute.remote(kind.release, kind.operation, pack, queue.waiting_tokens)
            except RayTaskError:
                raise
            except (RayActorError, RayError) as error:
                raise ReplicaLostError(str(error).splitlines()[0]) from error

        retries = self._metrics.retries.labels(name)

        def on_pack(sequences: int, tokens: int, seconds: float) -> None:
            self._metrics.tokens.labels(name).inc(tokens)
            self._metrics.pack_tokens.labels(name).observe(tokens)

        return _Model(
            ModelService(release, queue), Dispatcher(queue, call, on_pack=on_pack, on_retry=retries.inc)
        )

    async def _checked(self, release: Release) -> str | None:
        """What is wrong with a version, which is then refused; None when nothing is."""
        problem = await self._problem_of(release)
        if problem is not None:
            self._refused[release] = self._models[release.name].service.refused[release.version] = problem
        return problem

    async def _problem_of(self, release: Release) -> str | None:
        """What one replica, and then all of them, find wrong with a version."""
        problem = await self._encoders[release.name].prepare.remote(release)
        if problem:
            return problem
        answers = await self._encoders[release.name].broadcast("prepare", release).results_async()
        return next((problem for problem in answers if problem), None)

    def _show_versions(self) -> None:
        self._metrics.version.clear()
        for model in self._models.values():
            name, version, _ = model.service.current.release
            self._metrics.version.labels(name, version).set(1)

    async def _watch_state(self) -> None:
        while True:
            self._metrics.show_trials(
                {
                    name: model.service.trial.report()
                    for name, model in self._models.items()
                    if model.service.trial
                }
            )
            for name, model in self._models.items():
                self._metrics.waiting.labels(name).set(model.service.queue.waiting_tokens)
                self._metrics.replicas.labels(name).set(model.dispatcher.replicas)
            await asyncio.sleep(_STATE_EVERY)


def _collect_seldom() -> None:
    """Look for cycles in what was made since the start only, and less often: it took 14% of a request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class _Model(NamedTuple):
    service: ModelService
    dispatcher: Dispatcher


class _Server(uvicorn.Server):
    """Uvicorn inside a Ray actor: signals are the actor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listener(host: str, port: int) -> socket.socket:
    """A socket on the address; a new gateway can listen beside an old one that drains."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _server(settings: GatewaySettings, app: Any) -> _Server:
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.request_timeout_s),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        lifespan="off",
    )
    return _Server(config)
