"""What a client is told when there is no result: a status and one typed line, never a traceback."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from headway.inference.tokens import TextTooLongError
from headway.serving.scheduling.messages import ReplicaLostError
from headway.serving.scheduling.queue import DeadlinePassedError, QueueFullError
from headway.serving.scheduling.service import NotAbleError

STATUSES = (400, 401, 404, 408, 413, 422, 429, 499, 500, 503, 504)
"""Of all answers that are no result."""


class ClientGoneError(Exception):
    """Nobody would read the answer."""


_EXPECTED: dict[type[Exception], tuple[int, str]] = {
    NotAbleError: (422, "not_able"),
    TextTooLongError: (422, "text_too_long"),
    DeadlinePassedError: (504, "deadline_passed"),
    ClientGoneError: (499, "client_gone"),
    ReplicaLostError: (503, "no_replica"),
    QueueFullError: (503, "queue_full"),
}
_OF_HTTP = {404: "not_found", 405: "not_allowed", 503: "not_ready"}


def answer_to(error: Exception) -> Response:
    """The answer to a request that ended in this exception; 500 for one that nobody expects."""
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        kind = _OF_HTTP.get(error.status_code, "invalid_request")
        return _error(error.status_code, kind, str(error.detail), headers=dict(error.headers or {}))
    status, name = _EXPECTED.get(type(error), (500, "internal"))
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else {}
    return _error(status, name, str(error) or name, headers=headers)


def is_expected(error: Exception) -> bool:
    """Whether it tells of the request or of the load, and not of a mistake of the server's own."""
    return isinstance(error, HTTPException) or type(error) in _EXPECTED


def add_errors(app: FastAPI) -> None:
    """Have an application answer so."""

    async def handler(_: Request, error: Exception) -> Response:
        return answer_to(error)

    for kind in (RequestValidationError, HTTPException, *_EXPECTED, Exception):
        app.add_exception_handler(kind, handler)


def _invalid(error: RequestValidationError) -> Response:
    first = error.errors()[0]
    inside = () if first["type"] == "json_invalid" else first["loc"]
    field = ".".join(str(part) for part in inside if part != "body") or "body"
    # The value itself stays out: it may be long, or no valid text.
    return _error(422, "invalid_request", f"{field}: {first['msg']}", field)


def _error(
    status: int, kind: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    body = to_json({"error": {"type": kind, "message": message, "param": param}})
    return Response(body, status, headers, "application/json")
