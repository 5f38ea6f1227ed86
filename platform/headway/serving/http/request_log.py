"""An id and a line in the access log for every request, and the log of the server's own errors."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from dataclasses import dataclass

from headway.serving.http.asgi import App, Message, Receive, Send, header, request_id, route_path
from headway.serving.http.errors import internal_error

ACCESS_LOG = "headway.access"
"""Name of the logger. Each line is a JSON object, and holds nothing that a client has written but its id."""

ID_HEADER = b"x-request-id"

_access = logging.getLogger(ACCESS_LOG)
_log = logging.getLogger(__name__)

_ALLOWED_ID = re.compile(rb"[!-~]{1,128}")
_NO_ANSWER = 499


@dataclass
class RequestLog:
    """ASGI middleware that names requests, logs them, and answers those that end in an unexpected error.

    A request keeps the id in its header `X-Request-ID`, if that is one of up to 128 visible ASCII characters.
    The answer has it in the same header.

    Attributes:
        app: what answers.
    """

    app: App

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, ID_HEADER)
        name = given.decode() if _ALLOWED_ID.fullmatch(given) else uuid.uuid4().hex
        state = {"request_id": name, "arrived": time.monotonic()}
        scope["state"] = {**scope.get("state", {}), **state}
        started, status = time.perf_counter(), None

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (ID_HEADER, name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, named_send)
        except Exception as error:
            _log.error("request %s failed", name, exc_info=error)
            if status is None:
                await internal_error(name)(scope, receive, named_send)
        finally:
            _write(scope, status or _NO_ANSWER, time.perf_counter() - started)


def _write(scope: Message, status: int, seconds: float) -> None:
    client = scope.get("client")
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": request_id(scope),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": route_path(scope),
        "status": status,
        "milliseconds": round(seconds * 1000, 2),
    }
    _access.info("%s", json.dumps(line))
