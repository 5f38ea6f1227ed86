"""The address that a server listens on, in IPv4 or IPv6."""

from __future__ import annotations

import socket

from headway.config.base import ConfigError
from headway.config.serve import ServeConfig


def check_port(host: str, port: int) -> None:
    """Check that an address can be listened on.

    Raises:
        ConfigError: the port is in use, or the host is not this machine.
    """
    try:
        probe = listener(host, port)
    except OSError as error:
        raise ConfigError(f"port: cannot listen on {host}:{port}: {error.strerror}") from error
    probe.close()


def listener(host: str, port: int, *, beside_others: bool = False) -> socket.socket:
    """A socket bound to an address.

    Args:
        host: an address of IPv4 or IPv6, or a name.
        port: of TCP.
        beside_others: whether other sockets that say the same may be bound to it too.

    Raises:
        OSError: it cannot be listened on.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if beside_others:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found


def url_of(config: ServeConfig) -> str:
    """Where clients find the server."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.ssl_certfile else 'http'}://{host}:{config.port}"
