"""The HTTP application: what a client may ask, and what it is answered. No Ray, no torch, no socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from headway.serving import schemas, state_schemas
from headway.serving.batching import DeadlinePassedError, QueueFullError
from headway.serving.dispatch import ReplicaLostError
from headway.serving.metrics import Metrics
from headway.serving.operations import ClientGoneError, router
from headway.serving.page import add_page
from headway.serving.service import ModelService, NotAbleError
from headway.serving.tokens import TextTooLongError

Services = Mapping[str, ModelService]

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorResponse}
    for status in (400, 401, 404, 408, 413, 422, 429, 499, 500, 503, 504)
}


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
        responses=_ERRORS,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.services, app.state.timeout = services, timeout
    _add_errors(app)
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
        "layers": description.layers,
        "heads": description.heads,
        "mask": None if mask is None else tokenizer.backend.id_to_token(mask),
    }


def _error(status: int, kind: str, message: str, param: str | None = None, **headers: str) -> Response:
    body = to_json({"error": {"type": kind, "message": message, "param": param}})
    return Response(
        body, status, {name.replace("_", "-"): value for name, value in headers.items()}, "application/json"
    )


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        inside = () if first["type"] == "json_invalid" else first["loc"]
        field = ".".join(str(part) for part in inside if part != "body") or "body"
        # The value itself stays out: it may be long, or no valid text.
        return _error(422, "invalid_request", f"{field}: {first['msg']}", field)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        kind = {404: "not_found", 405: "not_allowed", 503: "not_ready"}.get(
            error.status_code, "invalid_request"
        )
        return _error(error.status_code, kind, str(error.detail), **dict(error.headers or {}))

    def handle(kind: type[Exception], status: int, name: str) -> None:
        @app.exception_handler(kind)
        async def handler(_: Request, error: Exception) -> Response:
            return _error(status, name, str(error) or name)

    handle(NotAbleError, 422, "not_able")
    handle(TextTooLongError, 422, "text_too_long")
    handle(DeadlinePassedError, 504, "deadline_passed")
    handle(ClientGoneError, 499, "client_gone")
    handle(ReplicaLostError, 503, "no_replica")
    handle(Exception, 500, "internal")

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> Response:
        return _error(503, "queue_full", str(error), retry_after=str(error.retry_after))
