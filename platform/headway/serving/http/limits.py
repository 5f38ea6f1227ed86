"""Limits on what clients send: requests a second, and the size and duration of bodies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from headway.serving.http.asgi import App, Message, Receive, Send, caller_name, header, replayed
from headway.serving.http.errors import error_response
from headway.serving.scheduling.fair_share import SharedBuffer

_LINGER_S = 1.0


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


class _RefusedError(Exception):
    """A body that is not read on, with the answer to its request."""

    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        self.response = error_response(status, kind, message, headers=headers)


@dataclass
class BodyLimit:
    """ASGI middleware that reads the whole body of a request, within limits, and passes it on in one message.

    Attributes:
        app: what gets the request.
        max_bytes: of a body.
        timeout: seconds in which a body must arrive.
        bodies: the bytes of all requests in progress, by caller.
    """

    app: App
    max_bytes: int
    timeout: float
    bodies: SharedBuffer

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, caller = bytearray(), caller_name(scope)
        try:
            message = await self._read(scope, receive, body, caller)
            await self.app(scope, replayed(message, receive), send)
        except _RefusedError as refusal:
            await refusal.response(scope, receive, send)
        finally:
            self.bodies.remove(caller, len(body))

    async def _read(self, scope: Message, receive: Receive, body: bytearray, caller: str) -> Message:
        """Read the body into `body`; what is there so far is counted for the caller in any case."""
        length = header(scope, b"content-length")
        if length.isdigit() and int(length) > self.max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    message = await receive()
                    self._add(body, message.get("body", b""), caller)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            text = f"the body did not arrive within {self.timeout:g} s"
            raise _RefusedError(408, "body_too_slow", text) from None
        return {**message, "body": body} if message["type"] == "http.request" else message

    def _add(self, body: bytearray, part: bytes, caller: str) -> None:
        if len(body) + len(part) > self.max_bytes:
            raise self._too_large()
        if not self.bodies.accepts(caller, len(part)):
            text = "the requests in progress fill the memory for their bodies; try again in 1 s"
            raise _RefusedError(503, "queue_full", text, **{"retry-after": "1"})
        self.bodies.add(caller, len(part))
        body += part

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, "body_too_large", f"the body has more than {self.max_bytes:,} bytes")


@dataclass
class CloseUnread:
    """ASGI middleware that ends the connection of a request that is answered before all of its body is read.

    The client could send the rest for as long as it likes: after its 408, or without ever having had a key.
    For a moment the rest is still read, since to close a connection with unread data takes back the answer.

    Attributes:
        app: what answers.
    """

    app: App

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await _read_rest(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, watched_receive, closing_send)


async def _read_rest(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body"):
                await asyncio.sleep(0)  # if there is always more to read, the timeout would have no turn


def _has_body(scope: Message) -> bool:
    length = header(scope, b"content-length")
    return length not in (b"", b"0") or bool(header(scope, b"transfer-encoding"))
