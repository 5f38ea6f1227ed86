"""The HTTP application over some models, and the middleware in front of it. No Ray, no torch, no socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException

from headway.serving.http import schemas, status_schemas
from headway.serving.http.asgi import App
from headway.serving.http.auth import Authentication, Keys
from headway.serving.http.errors import STATUSES, add_errors
from headway.serving.http.fast_path import FastPath
from headway.serving.http.limits import BodyLimit, CloseUnread
from headway.serving.http.page import add_page
from headway.serving.http.request_log import RequestLog
from headway.serving.http.request_metrics import RequestMetrics
from headway.serving.http.routes import router
from headway.serving.metrics import Metrics
from headway.serving.rollout.rollout import Rollout
from headway.serving.scheduling.fair_share import SharedBuffer
from headway.serving.settings import BodyLimits

Rollouts = Mapping[str, Rollout]
"""By the names that requests give to models."""


Missing = Callable[[], Awaitable[Sequence[str]]]
"""Tells which models have no replica that could answer."""


def build_app(rollouts: Rollouts, metrics: Metrics, timeout: float, missing: Missing) -> FastAPI:
    """The application over some models.

    Args:
        rollouts: the models.
        metrics: what `/metrics` shows.
        timeout: seconds that a client waits at most; it may ask for less.
        missing: tells which models cannot answer.
    """
    app = FastAPI(
        title="Headway",
        description="Encoders over HTTP.",
        responses={status: {"model": schemas.ErrorResponse} for status in STATUSES},
        docs_url=None,  # FastAPI's own pages load scripts from other hosts
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.rollouts, app.state.timeout = rollouts, timeout
    add_errors(app)
    app.include_router(router)
    _add_status(app, rollouts, metrics, missing)
    add_page(app)
    return app


def add_middleware(app: FastAPI, metrics: Metrics, keys: Keys | None, limits: BodyLimits) -> App:
    """The application as a server runs it: counted, logged, protected, and with the fast path.

    Args:
        app: from `build_app`.
        metrics: where requests are counted.
        keys: who may ask; None lets everybody in.
        limits: on the bodies of requests.
    """
    bodies = SharedBuffer(limits.waiting_bytes)
    limited = BodyLimit(FastPath(app), limits.max_bytes, limits.timeout, bodies)
    return RequestMetrics(CloseUnread(RequestLog(Authentication(limited, keys))), metrics)


def _add_status(app: FastAPI, rollouts: Rollouts, metrics: Metrics, missing: Missing) -> None:
    @app.get("/v1/models", response_model=status_schemas.ModelsResponse)
    async def models() -> dict[str, Any]:
        """The served models."""
        return {"object": "list", "data": [_served(name, rollout) for name, rollout in rollouts.items()]}

    @app.get("/v1/trials", response_model=status_schemas.ChallengersResponse)
    async def trials() -> dict[str, Any]:
        """The versions that are tried, compared with the serving ones."""
        challengers = [(name, rollout.challenger) for name, rollout in rollouts.items()]
        reports = [{"model": name, **tried.report()} for name, tried in challengers if tried is not None]
        return {"object": "list", "data": reports}

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def is_ready() -> dict[str, str]:
        """Whether every model has a replica, or starts one when it is asked."""
        if names := await missing():
            reason = f"no replica is up of {', '.join(names)}"
            raise HTTPException(503, reason, headers={"Retry-After": "2"})
        first = next(iter(rollouts.values())).serving.loaded.release
        return {"status": "ready", "model": first.name, "version": first.version}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Metrics for Prometheus."""
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)


def _served(name: str, rollout: Rollout) -> dict[str, Any]:
    release, description, tokenizer = rollout.serving.loaded
    mask = tokenizer.mask_id
    return {
        "id": name,
        "object": "model",
        "version": release.version,
        "refused": rollout.refused,
        "abilities": description.abilities,
        "labels": description.labels,
        "max_length": description.max_length,
        "hidden_size": description.hidden_size,
        "embedding_size": description.embedding_size,
        "layers": description.layers,
        "heads": description.heads,
        "mask": None if mask is None else tokenizer.backend.id_to_token(mask),
    }
