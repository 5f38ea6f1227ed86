"""Whether a Ray cluster answers at an address and lets this machine in, found in seconds, quietly.

Ray itself would try for minutes where nothing listens, and print a warning a second where it is not let in.
"""

from __future__ import annotations

import os
import socket

from headway.cluster import ray_internals

_PATIENCE_SECONDS = 2.0


def address_problem(address: str) -> str | None:
    """Why the cluster at `host:port` cannot be joined; None where nothing speaks against it.

    Has Ray show this machine's token from now on where the cluster asks for one. Other forms of address
    (`auto`, `local`, `ray://…`) are left to Ray, but for whether anything listens.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None if address.startswith("ray://") else _token_problem(f"{host}:{port}")


def _token_problem(address: str) -> str | None:
    if not ray_internals.is_refused(address, _PATIENCE_SECONDS):
        return None
    # Where none is asked for, none is shown: such a cluster could not call a driver that asks for one itself.
    if not ray_internals.show_token() and "RAY_AUTH_MODE" not in os.environ:
        return "it asks for a token, which this release of Ray shows only if told to; set RAY_AUTH_MODE=token"
    if not ray_internals.is_refused(address, _PATIENCE_SECONDS):
        return None
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return "it asks for a token, and RAY_AUTH_MODE says to show none; unset it"
    return (
        "it asks for another token than this machine shows; "
        "set RAY_AUTH_TOKEN or ~/.ray/auth_token to what `ray get-auth-token` prints on its head"
    )
