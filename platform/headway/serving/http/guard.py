"""What stands before the application: keys, rates, and limits on bodies; it also counts what goes through."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from headway.config.base import ConfigError
from headway.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN = ("/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/page/")
_DIGEST_LENGTH = 64


@dataclass
class Rate:
    """A token bucket: `per_second` requests on average, as many at once as in a second."""

    per_second: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = max(1.0, self.per_second), time.monotonic()

    def wait(self) -> float:
        """Count a request; seconds to wait where it is one too many, else 0."""
        now = time.monotonic()
        self.level = min(max(1.0, self.per_second), self.level + (now - self.at) * self.per_second)
        self.at = now
        if self.level < 1.0:
            return (1.0 - self.level) / self.per_second
        self.level -= 1.0
        return 0.0


class Keys:
    """Who may ask: SHA-256 digests of bearer keys, each with a rate of its own."""

    def __init__(self, digests: frozenset[str], per_second: float | None) -> None:
        self._rates = {digest: Rate(per_second) if per_second else None for digest in digests}

    @property
    def digests(self) -> list[str]:
        """Of all keys."""
        return list(self._rates)

    @classmethod
    def read(cls, path: Path, per_second: float | None) -> Keys:
        """Read a file with a digest a line, as `headway key` writes them; a word after it is a comment.

        Raises:
            ConfigError: no such file, or a line that is no digest.
        """
        try:
            lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file: {str(path)!r} cannot be read: {error}") from error
        for number, (digest, *_) in enumerate(lines, 1):
            if len(digest) != _DIGEST_LENGTH or set(digest) - set("0123456789abcdef"):
                raise ConfigError(f"api_keys_file: line {number} of {str(path)!r} is not a SHA-256 digest")
        if not lines:
            raise ConfigError(f"api_keys_file: {str(path)!r} holds no digest")
        return cls(frozenset(digest for digest, *_ in lines), per_second)

    def admit(self, authorization: bytes) -> tuple[int, float]:
        """The status for a request with this header, 200 or why not, and seconds to wait."""
        scheme, _, key = authorization.partition(b" ")
        # A digest tells nothing of the keys that share its beginning, so a plain look-up leaks no time.
        digest = hashlib.sha256(key.strip()).hexdigest()
        if scheme.lower() != b"bearer" or digest not in self._rates:
            return 401, 0.0
        rate = self._rates[digest]
        wait = rate.wait() if rate else 0.0
        return (429, wait) if wait else (200, 0.0)


class _RefusedError(Exception):
    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        self.status, self.kind, self.message, self.headers = status, kind, message, headers


@dataclass
class Guard:
    """An ASGI application around another.

    Attributes:
        app: what it guards.
        metrics: where it counts.
        keys: who may ask; None lets everybody.
        max_body: bytes of a body at most.
        body_timeout: seconds in which a body must have come.
    """

    app: App
    metrics: Metrics
    keys: Keys | None
    max_body: int
    body_timeout: float

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        watched = _Watched(send)
        try:
            self._check_key(scope)
            await self.app(scope, await self._body(scope, receive), watched.send)
        except _RefusedError as refusal:
            await _refuse(refusal, watched.send)
        self._count(scope, watched.status, time.perf_counter() - started)

    def _check_key(self, scope: Message) -> None:
        path = scope["path"]
        if self.keys is None or path in _OPEN or path.startswith(_OPEN[-1]):
            return
        status, wait = self.keys.admit(_header(scope, b"authorization"))
        if status == 401:
            raise _RefusedError(
                401, "unauthorized", "a valid bearer key is needed", **{"www-authenticate": "Bearer"}
            )
        if status == 429:
            message = "more requests than this key may send"
            raise _RefusedError(429, "rate_limited", message, **{"retry-after": str(max(1, round(wait)))})

    async def _body(self, scope: Message, receive: Receive) -> Receive:
        """Read the body whole, within its limits; what is returned hands it on, and then listens on."""
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self.max_body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self.max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise _RefusedError(
                408, "body_too_slow", f"the body did not come in {self.body_timeout:g} s"
            ) from None
        whole = {**message, "body": bytes(body)} if message["type"] == "http.request" else message
        return received_again(whole, receive)

    def _too_large(self) -> _RefusedError:
        message = f"the body has more than {self.max_body:,} bytes"
        return _RefusedError(413, "body_too_large", message, connection="close")

    def _count(self, scope: Message, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.latency.labels(path).observe(seconds)


@dataclass
class _Watched:
    """Passes an answer on and keeps its status."""

    passed_on: Send
    status: int = 499

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.passed_on(message)


def received_again(message: Message, receive: Receive) -> Receive:
    """Receives a message that has been received already, and then what comes."""
    pending = [message]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _header(scope: Message, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _refuse(refusal: _RefusedError, send: Send) -> None:
    body = to_json({"error": {"type": refusal.kind, "message": refusal.message, "param": None}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
