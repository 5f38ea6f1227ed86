"""Limits on what clients send: requests a second, and the size and duration of a body."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from headway.serving.http.asgi import App, Message, Receive, Send, header, replayed
from headway.serving.http.errors import error_response


@dataclass
class RateLimit:
    """A token bucket: `per_second` requests on average, and as many at once as in one second."""

    per_second: float
    level: float = field(init=False)
    updated_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.updated_at = max(1.0, self.per_second), time.monotonic()

    def wait(self) -> float:
        """Count a request; 0 if it may pass, else the seconds until one may."""
        now = time.monotonic()
        self.level = min(max(1.0, self.per_second), self.level + (now - self.updated_at) * self.per_second)
        self.updated_at = now
        if self.level < 1.0:
            return (1.0 - self.level) / self.per_second
        self.level -= 1.0
        return 0.0


class _BodyTooLargeError(Exception):
    pass


@dataclass
class BodyLimit:
    """ASGI middleware that reads the whole body of a request, within limits, and passes it on in one message.

    Attributes:
        app: what gets the request.
        max_bytes: of a body.
        timeout: seconds in which a body must arrive.
    """

    app: App
    max_bytes: int
    timeout: float

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            message = await self._read(scope, receive)
        except _BodyTooLargeError:
            text = f"the body has more than {self.max_bytes:,} bytes"
            response = error_response(413, "body_too_large", text, headers={"connection": "close"})
        except TimeoutError:
            text = f"the body did not arrive within {self.timeout:g} s"
            response = error_response(408, "body_too_slow", text)
        else:
            await self.app(scope, replayed(message, receive), send)
            return
        await response(scope, receive, send)

    async def _read(self, scope: Message, receive: Receive) -> Message:
        length = header(scope, b"content-length")
        if length.isdigit() and int(length) > self.max_bytes:
            raise _BodyTooLargeError
        body = bytearray()
        async with asyncio.timeout(self.timeout):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > self.max_bytes:
                    raise _BodyTooLargeError
                if not message.get("more_body", False):
                    break
        return {**message, "body": bytes(body)} if message["type"] == "http.request" else message
