"""The driver's side: starts the fork server, and tells Ray's processes where it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from headway.cluster.fork_server import client, server

FOR_SERVING = (
    *("fastapi", "pandas", "uvicorn"),  # what Ray Serve brings with it
    *("headway.serving.http.app", "headway.inference.model"),
)
FOR_ALL = (*FOR_SERVING, "headway.sweeps.trials")
"""What the fork server loads. Nothing that imports Ray: its core does not survive a fork."""

_server: subprocess.Popen[bytes] | None = None
_socket: Path | None = None


def start(modules: Sequence[str] = FOR_ALL) -> None:
    """Start the fork server, once per process; it begins to load modules, and ends when this process does."""
    global _server, _socket
    if _server is not None:
        return
    # In a folder that only this user can open: whoever can write to the socket can run anything.
    _socket = Path(tempfile.mkdtemp(prefix="headway-")) / "fork_server"
    _server = start_server(_socket, modules)


def start_server(address: Path, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a fork server that listens at a new socket; it ends when its standard input is closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        # Clients that connect while the server is still loading wait for it.
        listener.bind(str(address))
        listener.listen(socket.SOMAXCONN)
        return subprocess.Popen(
            # By its file: with -m, modules in the current folder would take precedence.
            [sys.executable, server.__file__, str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("HEADWAY_DEBUG") else subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the driver to handle
        )


def worker_environment() -> dict[str, str]:
    """The variables that `client` needs to find the fork server."""
    start()
    return {client.FORK_SERVER: str(_socket)}
