"""Checks in seconds, quietly, whether a Ray cluster answers at an address and admits this machine.

Ray itself tries for minutes if nothing listens, and prints a warning every second if it is not admitted.
"""

from __future__ import annotations

import os
import socket

from headway.cluster import ray_internals

_TIMEOUT_SECONDS = 2.0


def address_problem(address: str) -> str | None:
    """Why the cluster at `host:port` cannot be joined; None if no problem is found.

    If the cluster asks for a token, Ray sends this machine's from now on. The addresses `auto` and `local`
    are left to Ray; for `ray://…` only whether anything listens is checked.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None if address.startswith("ray://") else _token_problem(f"{host}:{port}")


def _token_problem(address: str) -> str | None:
    if not ray_internals.is_refused(address, _TIMEOUT_SECONDS):
        return None
    # A token is sent only if asked for: a cluster without one could not call a driver that requires one.
    if not ray_internals.show_token() and "RAY_AUTH_MODE" not in os.environ:
        return "it requires a token, which this release of Ray sends only if told to; set RAY_AUTH_MODE=token"
    if not ray_internals.is_refused(address, _TIMEOUT_SECONDS):
        return None
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return "it requires a token, but RAY_AUTH_MODE says to send none; unset it"
    return (
        "it requires another token than this machine sends; "
        "set RAY_AUTH_TOKEN or ~/.ray/auth_token to what `ray get-auth-token` prints on its head node"
    )
