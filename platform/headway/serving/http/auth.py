"""API keys: who may ask. The server knows only SHA-256 digests of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from headway.config.base import ConfigError
from headway.serving.http.asgi import App, Message, Receive, Send, connection_name, header
from headway.serving.http.errors import error_response
from headway.serving.http.limits import RateLimit

_OPEN = ("/", "/docs", "/openapi.json", "/health/live", "/health/ready")
_OPEN_FOLDER = "/page/"
_DIGEST_LENGTH = 64


class Admission(NamedTuple):
    """Whether a request may pass.

    Attributes:
        status: 200, 401 (no such key) or 429 (too many requests).
        digest: of the key; empty if there is no such key.
        wait: seconds to wait after a 429.
    """

    status: int
    digest: str = ""
    wait: float = 0.0


class Keys:
    """SHA-256 digests of bearer keys, each with its own rate limit.

    Args:
        digests: in hexadecimal.
        per_second: requests a second that each key may send; None for any number.
    """

    def __init__(self, digests: frozenset[str], per_second: float | None) -> None:
        self._limits = {digest: RateLimit(per_second) if per_second else None for digest in digests}

    @property
    def digests(self) -> list[str]:
        """Of all keys."""
        return list(self._limits)

    @classmethod
    def read(cls, path: Path, per_second: float | None) -> Keys:
        """Read a file with a digest on each line, as `headway key` writes them; what follows is a comment.

        Raises:
            ConfigError: the file cannot be read, or a line holds no digest.
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

    def replace(self, others: Keys) -> None:
        """Let other keys ask from now on; those that may already go on at the rate that they have."""
        self._limits = {digest: self._limits.get(digest, limit) for digest, limit in others._limits.items()}

    def admit(self, authorization: bytes) -> Admission:
        """Count a request with this header."""
        scheme, _, key = authorization.partition(b" ")
        # How long the look-up takes tells of digests that begin alike, which says nothing about their keys.
        digest = hashlib.sha256(key.strip()).hexdigest()
        if scheme.lower() != b"bearer" or digest not in self._limits:
            return Admission(401)
        limit = self._limits[digest]
        wait = limit.wait() if limit else 0.0
        return Admission(429, digest, wait) if wait else Admission(200, digest)


@dataclass
class Authentication:
    """ASGI middleware that lets known keys in, at their rate; the page and health checks need no key.

    A request that is let in has `caller` in its state: the digest of its key, or its connection if no keys
    are needed.

    Attributes:
        app: what it protects.
        keys: who may ask; None lets everybody in.
    """

    app: App
    keys: Keys | None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        if self.keys is None:
            scope["state"]["caller"] = connection_name(scope)
            await self.app(scope, receive, send)
            return
        status, digest, wait = self.keys.admit(header(scope, b"authorization"))
        if digest:
            scope["state"]["caller"] = digest
        if status == 401:
            message = "a valid bearer key is needed"
            response = error_response(401, "unauthorized", message, headers={"www-authenticate": "Bearer"})
            await response(scope, receive, send)
        elif status == 429:
            headers = {"retry-after": str(max(1, round(wait)))}
            message = "this key has sent too many requests"
            await error_response(429, "rate_limited", message, headers=headers)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_FOLDER)
