"""The HTTP application: what a client may ask, and what it is answered. No Ray, no torch, no socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException

from headway.serving.http import schemas, state_schemas
from headway.serving.http.errors import STATUSES, add_errors
from headway.serving.http.operations import router
from headway.serving.http.page import add_page
from headway.serving.metrics import Metrics
from headway.serving.scheduling.service import ModelService

Services = Mapping[str, ModelService]


def build_app(services: Services, metrics: Metrics, timeout: float, ready: Callable[[], bool]) -> FastAPI:
    """The application over some models.

    Args:
        services: the models by name.
        metrics: what `/metrics` shows.
        timeout: seconds a client waits at most; it may ask for less.
        ready: whether the models have been loaded.
    """
    app = FastAPI(
        title="Headway",
        description="Encoders over HTTP.",
        responses={status: {"model": schemas.ErrorResponse} for status in STATUSES},
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.services, app.state.timeout = services, timeout
    add_errors(app)
    app.include_router(router)
    _add_state(app, metrics, ready)
    add_page(app)
    return app


def _add_state(app: FastAPI, metrics: Metrics, ready: Callable[[], bool]) -> None:
    services: Services = app.state.services

    @app.get("/v1/models", response_model=state_schemas.ModelsResponse)
    async def models() -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [_served(name, service) for name, service in services.items()]}

    @app.get("/v1/trials", response_model=state_schemas.TrialsResponse)
    async def trials() -> dict[str, Any]:
        """Versions that are tried, compared with those that answer."""
        tried = [(name, service.trial) for name, service in services.items() if service.trial]
        return {"object": "list", "data": [{"model": name, **trial.report()} for name, trial in tried]}

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def is_ready() -> dict[str, str]:
        """The models have been loaded."""
        if not ready():
            raise HTTPException(503, "the models are being loaded", headers={"Retry-After": "2"})
        first = next(iter(services.values())).current.release
        return {"status": "ready", "model": first.name, "version": first.version}

    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """For Prometheus."""
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)


def _served(name: str, service: ModelService) -> dict[str, Any]:
    release, description, tokenizer = service.current
    mask = tokenizer.mask_id
    return {
        "id": name,
        "object": "model",
        "version": release.version,
        "refused": service.refused,
        "abilities": description.abilities,
        "labels": description.labels,
        "max_length": description.max_length,
        "hidden_size": description.hidden_size,
        "embedding_size": description.embedding_size,
        "layers": description.layers,
        "heads": description.heads,
        "mask": None if mask is None else tokenizer.backend.id_to_token(mask),
    }
