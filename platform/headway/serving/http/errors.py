"""What a client gets when there is no result: a status and one typed line, never a traceback."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from headway.inference.tokens import RequestTooLargeError, TextTooLongError
from headway.serving.http.asgi import request_id
from headway.serving.scheduling.caller import DeadlinePassedError
from headway.serving.scheduling.messages import LethalSequenceError, ReplicaLostError
from headway.serving.scheduling.queue import QueueFullError
from headway.serving.scheduling.service import NotAbleError

STATUSES = (400, 401, 404, 408, 413, 422, 429, 499, 500, 503, 504)
"""All statuses of answers without a result."""


class ClientGoneError(Exception):
    """The client disconnected before its answer was there."""


_EXPECTED: dict[type[Exception], tuple[int, str]] = {
    NotAbleError: (422, "not_able"),
    TextTooLongError: (422, "text_too_long"),
    RequestTooLargeError: (413, "request_too_large"),
    DeadlinePassedError: (504, "deadline_passed"),
    ClientGoneError: (499, "client_gone"),
    ReplicaLostError: (503, "no_replica"),
    LethalSequenceError: (500, "lethal_input"),
    QueueFullError: (503, "queue_full"),
}
_TYPES_BY_STATUS = {404: "not_found", 405: "not_allowed", 503: "not_ready"}


def error_response(
    status: int,
    kind: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer without a result.

    Args:
        status: of HTTP.
        kind: the error's type, for programs.
        message: for people.
        param: the field that is wrong, if it is one.
        headers: of the answer.
    """
    body = to_json({"error": {"type": kind, "message": message, "param": param}})
    return Response(body, status, headers, "application/json")


def internal_error(request_id: str) -> Response:
    """The answer to a request that ended in a bug, whose details are for the log alone."""
    message = f"the server failed; its log tells of request {request_id}"
    return error_response(500, "internal", message)


def answer_to(error: Exception, request_id: str) -> Response:
    """The answer to a request that ended in this exception; `internal_error` if it is unexpected."""
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        kind = _TYPES_BY_STATUS.get(error.status_code, "invalid_request")
        return error_response(error.status_code, kind, str(error.detail), headers=error.headers)
    if type(error) not in _EXPECTED:
        return internal_error(request_id)
    status, kind = _EXPECTED[type(error)]
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, QueueFullError) else None
    return error_response(status, kind, str(error) or kind, headers=headers)


def is_expected(error: Exception) -> bool:
    """Whether the exception says something about the request or the load, not about a bug in the server."""
    return isinstance(error, HTTPException) or type(error) in _EXPECTED


def add_errors(app: FastAPI) -> None:
    """Let an application answer exceptions with `answer_to`."""

    async def handler(request: Request, error: Exception) -> Response:
        return answer_to(error, request_id(request.scope))

    for kind in (RequestValidationError, HTTPException, *_EXPECTED, Exception):
        app.add_exception_handler(kind, handler)


def _invalid(error: RequestValidationError) -> Response:
    first = error.errors()[0]
    inside = () if first["type"] == "json_invalid" else first["loc"]
    field = ".".join(str(part) for part in inside if part != "body") or "body"
    # The value itself stays out: it may be long, or not valid text.
    return error_response(422, "invalid_request", f"{field}: {first['msg']}", field)
