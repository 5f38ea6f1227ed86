"""Connections: how many there are, and how long each may keep the server waiting before a key is checked.

Uvicorn bounds neither. Everything here that builds on its classes does so in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headway.serving.settings import ConnectionLimits

_OTHER_FILES = 1024
"""Files that the process opens besides the connections, at most."""

_HEADERS = b"connection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _HEADERS
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\n" + _HEADERS
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n" + _HEADERS


class ConnectionPool:
    """All connections of a server. One too many closes the one that has kept the server waiting longest.

    A connection waits for its client unless a request is being answered. Strangers, of whom no request was
    let in, are closed before others.

    Attributes:
        limits: of each connection, and of their number.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open = 0
        # Dictionaries keep the order: the one that has waited longest is the first.
        self._strangers: dict[Connection, None] = {}
        self._known: dict[Connection, None] = {}

    def opened(self, connection: Connection) -> None:
        """Count a new connection, and close another one if there are too many, or this one."""
        self._open += 1
        if self._open > self.limits.max_connections:
            oldest = next(iter(self._strangers), None) or next(iter(self._known), connection)
            oldest.refuse(_TOO_MANY)

    def closed(self, connection: Connection) -> None:
        """Count a connection that is no longer there."""
        self._open -= 1
        self.computes(connection)

    def waits(self, connection: Connection, *, known: bool) -> None:
        """A connection waits for its client from now on."""
        self.computes(connection)
        (self._known if known else self._strangers)[connection] = None

    def computes(self, connection: Connection) -> None:
        """A connection no longer waits for its client."""
        self._strangers.pop(connection, None)
        self._known.pop(connection, None)


class Connection(HttpToolsProtocol):
    """Uvicorn's connection with limits: size and time of a request's head, and time of unread answers."""

    def __init__(self, pool: ConnectionPool, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._pool, self._limits = pool, pool.limits
        self._known = self._in_head = self._too_large = False
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, but not for long."""
        super().connection_made(transport)
        self._pool.opened(self)
        if not transport.is_closing():
            self._pool.waits(self, known=False)
            self._start_timer(self._limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it."""
        self._stop_timer()
        self._pool.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. If it is no whole head, the rest has to come within the limits."""
        in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self.refuse(_TOO_LARGE)
                return
        if self._timer is None and self._is_idle:
            self._start_timer(self._limits.head_timeout)

    def on_message_begin(self) -> None:
        """The first byte of a request is there."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """The head is there; a body may follow."""
        self._stop_timer()
        self._in_head = False
        if sum(len(name) + len(value) for name, value in self.headers) > self._limits.max_head_bytes:
            self._too_large = True
            raise ValueError("the head is too large")  # the parser stops, and `send_400_response` is called
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed."""
        if self._too_large:
            self.refuse(_TOO_LARGE)
        else:
            super().send_400_response(msg)

    def on_message_complete(self) -> None:
        """The whole request is there, so it is the server's turn."""
        super().on_message_complete()
        if not self._is_idle:
            self._pool.computes(self)

    def on_response_complete(self) -> None:
        """Wait for the next request; Uvicorn limits how long it may take to begin."""
        self._known = self._known or "caller" in self.cycle.scope.get("state", {})
        super().on_response_complete()
        if not self.transport.is_closing() and self._is_idle:
            self._pool.waits(self, known=self._known)

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        super().pause_writing()
        self._pool.waits(self, known=self._known)
        self._start_timer(self._limits.write_timeout)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._stop_timer()
        if not self._is_idle:
            self._pool.computes(self)

    def refuse(self, answer: bytes) -> None:
        """Close the connection, with an answer if no other is being sent."""
        self._pool.computes(self)
        if self._is_idle and not self.flow.write_paused:
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered, whose head is there."""
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            self.transport.abort()  # the client does not read the rest of its answer
        else:
            self.refuse(_TOO_SLOW)


class Server(uvicorn.Server):
    """Uvicorn inside a Ray actor, which handles signals itself, with limits on connections."""

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits) -> None:
        super().__init__(config)
        self._pool = ConnectionPool(limits)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on some sockets."""
        limits, config = self._pool.limits, self.config
        _allow_files(limits.max_connections + _OTHER_FILES)
        self.servers = [
            await asyncio.get_running_loop().create_server(
                self._connection,
                sock=listener,
                ssl=config.ssl,
                ssl_handshake_timeout=limits.head_timeout if config.ssl else None,
                backlog=config.backlog,
            )
            for listener in sockets or []
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray."""
        yield

    def _connection(self) -> Connection:
        return Connection(self._pool, self.config, self.server_state, {})


def _allow_files(count: int) -> None:
    """Let this process open so many files, if its limit may be raised so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
