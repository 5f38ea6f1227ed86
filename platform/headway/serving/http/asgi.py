"""The types of ASGI, and what several middlewares need of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def header(scope: Message, name: bytes) -> bytes:
    """A header of a request, by its lower-case name; empty if it has none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def request_id(scope: Message) -> str:
    """The id that `RequestLog` has given a request."""
    return str(scope.get("state", {}).get("request_id", ""))


def arrived(scope: Message) -> float:
    """When a request's head was there, by the monotonic clock; `RequestLog` has noted it."""
    return float(scope["state"]["arrived"])


def caller_name(scope: Message) -> str:
    """Whose request it is: the digest of its key if `Authentication` wanted one, else its connection."""
    return str(scope["state"].get("caller") or connection_name(scope))


def connection_name(scope: Message) -> str:
    """The address and the port at the client's end."""
    host, port = scope.get("client") or ("", 0)
    return f"{host} {port}"


def route_path(scope: Message) -> str:
    """The route that answered, once it has; `other` if none did, since any path could be asked for."""
    return str(getattr(scope.get("route"), "path", "other"))


def replayed(message: Message, receive: Receive) -> Receive:
    """Receives a message again that has been received already, and then what follows it."""
    pending = [message]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again
