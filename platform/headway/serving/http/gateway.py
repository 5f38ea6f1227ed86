"""The gateway: a Ray Serve deployment that speaks HTTP itself and sends packs to the replicas.

Behind Ray Serve's own proxy each request would pass through two more processes, one by one. Here it is read,
tokenized and queued in one process, and packs of many go to the replicas. The gateway also keeps what a
replica is computing, and so can send it again if the replica dies.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import uvicorn
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.handle import DeploymentHandle

from headway.cluster import ray_internals
from headway.config.base import ConfigError
from headway.config.serve import ChallengerConfig
from headway.inference.packing import Pack
from headway.serving.address import listener
from headway.serving.http.app import add_middleware, build_app
from headway.serving.http.auth import Keys
from headway.serving.http.connections import Server
from headway.serving.http.log_files import log_beside_ray_serve
from headway.serving.http.replica_counts import ReplicaCounts
from headway.serving.memory import return_memory
from headway.serving.metrics import Metrics
from headway.serving.reloading import followed_files
from headway.serving.rollout.kept_state import dump_states, load_states
from headway.serving.rollout.rollout import Rollout
from headway.serving.scheduling.dispatch import Dispatcher
from headway.serving.scheduling.messages import Kind, LoadedRelease, Release, ReplicaLostError, Reply
from headway.serving.scheduling.queue import Stage, TokenQueue
from headway.serving.scheduling.service import ModelService
from headway.serving.settings import GatewaySettings, pack_timeout_s

_log = logging.getLogger(__name__)

_METRICS_INTERVAL_S = 0.5


class _Model(NamedTuple):
    rollout: Rollout
    dispatcher: Dispatcher


class Gateway:
    """Serves HTTP on its address until Ray Serve stops it."""

    def __init__(
        self,
        settings: GatewaySettings,
        releases: Mapping[str, Release],
        encoders: Mapping[str, DeploymentHandle[Any]],
    ) -> None:
        # First, since Ray Serve calls `__del__` even if a version cannot be read.
        self._server: Server | None = None
        self._settings = settings
        self._encoders = dict(encoders)
        self._kept = load_states(ray_internals.kept(self._key))
        self._releases = {name: self._newest(name, release) for name, release in releases.items()}
        self._metrics = Metrics()
        self._models: dict[str, _Model] = {}
        self._replicas = ReplicaCounts(self._encoders)
        _collect_seldom()
        log_beside_ray_serve()
        self._tasks: list[asyncio.Task[Any]] = []
        self._draining = False
        digests = frozenset(settings.key_digests)
        self._keys = Keys(digests, settings.requests_per_second) if digests else None
        self._starting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, unless it does already; returns once clients can connect."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def switch(self, release: Release) -> str | None:
        """See `Rollout.switch`."""
        problem = await self._models[release.name].rollout.switch(release)
        self._show_versions()
        return problem

    async def challenge(self, name: str, release: Release | None, config: ChallengerConfig) -> str | None:
        """See `Rollout.challenge`."""
        return await self._models[name].rollout.challenge(release, config)

    async def check_health(self) -> None:
        """Ray Serve restarts a gateway that fails this."""
        if self._starting is None:
            await self.start()
        if not self._draining and any(task.done() for task in self._tasks):
            raise RuntimeError("the gateway has stopped listening")

    async def drain(self) -> None:
        """Accept no new connections, and return once all requests are answered."""
        if self._server is not None:
            self._draining = self._server.should_exit = True
            await asyncio.wait(self._tasks[:1], timeout=self._settings.request_timeout_s)

    async def __del__(self) -> None:
        """Ray Serve awaits this before it stops a replica."""
        await self.drain()

    async def _start(self) -> None:
        self._models = {name: self._make(release) for name, release in self._releases.items()}
        self._show_versions()
        self._server = _server(self._settings, self._app())
        # A new gateway can listen while the old one still drains.
        socket = listener(self._settings.host, self._settings.port, beside_others=True)
        self._tasks = [
            asyncio.create_task(self._server.serve([socket])),
            *(asyncio.create_task(model.dispatcher.run()) for model in self._models.values()),
            asyncio.create_task(self._update_metrics()),
            asyncio.create_task(return_memory()),
        ]
        while not self._server.started:
            if self._tasks[0].done():
                raise RuntimeError(f"{self._settings.host}:{self._settings.port} cannot be listened on")
            await asyncio.sleep(0.01)
        followed = followed_files(self._settings, self._keys, self._server.config.ssl)
        self._tasks += map(asyncio.create_task, followed)

    def _app(self) -> Any:
        settings = self._settings
        rollouts = {name: model.rollout for name, model in self._models.items()}
        app = build_app(rollouts, self._metrics, settings.request_timeout_s, self._missing)
        return add_middleware(app, self._metrics, self._keys, settings.bodies)

    def _make(self, first: LoadedRelease) -> _Model:
        settings, name = self._settings, first.release.name

        def on_stage(stage: Stage, seconds: float) -> None:
            self._metrics.stages.labels(name, stage).observe(seconds)

        queue = TokenQueue(
            settings.pack_tokens,
            settings.queue_tokens,
            settings.cache_size,
            on_stage=on_stage,
            max_request_tokens=settings.max_request_tokens,
        )
        retries = self._metrics.retries.labels(name)

        def on_pack(sequences: int, tokens: int, seconds: float) -> None:
            self._metrics.tokens.labels(name).inc(tokens)
            self._metrics.pack_tokens.labels(name).observe(tokens)

        compute = partial(_compute, self._encoders[name], queue)
        timeout = pack_timeout_s(settings.request_timeout_s)
        dispatcher = Dispatcher(queue, compute, timeout, on_pack=on_pack, on_retry=retries.inc)
        service = ModelService(first, queue)
        refused = self._kept[name].refused if name in self._kept else None
        rollout = Rollout(service, self._check, lambda: dispatcher.idle, refused, self._keep)
        return _Model(rollout, dispatcher)

    @property
    def _key(self) -> str:
        return f"rollouts-{self._settings.deployment}"

    def _newest(self, name: str, deployed: Release) -> LoadedRelease:
        """The version that served last, or the deployed one if this is the first gateway."""
        release = self._kept[name].serving if name in self._kept else deployed
        try:
            return LoadedRelease.open(release)
        except ConfigError as error:
            if release == deployed:
                raise
            _log.error("%s version %s served last, but is gone: %s", name, release.version, error)
            return LoadedRelease.open(deployed)

    def _keep(self) -> None:
        """Let the next gateway serve what this one serves, and refuse what it refuses."""
        states = {name: model.rollout.kept_state for name, model in self._models.items()}
        ray_internals.keep(self._key, dump_states(states))

    async def _missing(self) -> list[str]:
        """Models without a replica that need one."""
        for max_age_s in (0.5, 0.0):  # what was missing a moment ago may be there now
            running = await self._replicas.running(max_age_s)
            missing = [name for name, count in running.items() if not count]
            missing = [name for name in missing if name not in self._settings.scale_to_zero]
            if not missing:
                break
        return missing

    async def _check(self, release: Release) -> str | None:
        """What one replica, and then all of them, find wrong with a version."""
        try:
            problem: str | None = await self._encoders[release.name].prepare.remote(release)
        except RayActorError as error:
            raise ReplicaLostError(type(error).__name__) from error
        if problem:
            return problem
        answers = await self._encoders[release.name].broadcast("prepare", release).results_async()
        return next((problem for problem in answers if problem), None)

    def _show_versions(self) -> None:
        self._metrics.version.clear()
        for model in self._models.values():
            name, version, _ = model.rollout.serving.loaded.release
            self._metrics.version.labels(name, version).set(1)

    async def _update_metrics(self) -> None:
        while True:
            challengers = {name: model.rollout.challenger for name, model in self._models.items()}
            self._metrics.show_challengers({name: tried for name, tried in challengers.items() if tried})
            for name, model in self._models.items():
                self._metrics.waiting.labels(name).set(model.dispatcher.queue.waiting_tokens)
            for name, count in (await self._replicas.running()).items():
                self._metrics.replicas.labels(name).set(count)
            await asyncio.sleep(_METRICS_INTERVAL_S)


async def _compute(encoder: DeploymentHandle[Any], queue: TokenQueue, kind: Kind, pack: Pack) -> Reply:
    """Have some replica compute a pack; see `Call`."""
    try:
        return await encoder.compute.remote(kind.release, kind.operation, pack, queue.unanswered_tokens)
    except RayTaskError:
        raise
    except RayError as error:
        raise ReplicaLostError(type(error).__name__, getattr(error, "actor_id", None)) from error


def _collect_seldom() -> None:
    """Let the garbage collector run less often and skip what exists now: it took 14% of a request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _server(settings: GatewaySettings, app: Any) -> Server:
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
        ws="none",  # a connection that becomes a WebSocket would be without limits
    )
    return Server(config, settings.connections)
