"""Whether a Ray cluster answers at an address and lets this machine in, found in seconds, quietly.

Ray itself would try for minutes where nothing listens, and print a warning a second where it is not let in.
"""

from __future__ import annotations

import logging
import os
import socket

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
    if not _is_refused(address):
        return None
    # Where none is asked for, none is shown: such a cluster could not call a driver that asks for one itself.
    _show_token_where_there_is_one()
    if not _is_refused(address):
        return None
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return "it asks for a token, and RAY_AUTH_MODE says to show none; unset it"
    return (
        "it asks for another token than this machine shows; "
        "set RAY_AUTH_TOKEN or ~/.ray/auth_token to what `ray get-auth-token` prints on its head"
    )


def _show_token_where_there_is_one() -> None:
    """Have Ray use this machine's token, if it has one; `RAY_AUTH_MODE` decides, where set.

    Ray 2.60 does so by itself for the address `auto` only.
    """
    from ray._private.authentication import authentication_token_setup as setup

    # It would advise on how to switch the token off.
    setup.logger.setLevel(logging.ERROR)
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _is_refused(address: str) -> bool:
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = init_grpc_channel(address, asynchronous=False)
    try:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        service.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=_PATIENCE_SECONDS)
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    finally:
        channel.close()
    return False
