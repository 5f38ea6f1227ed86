"""The driver's side: starts the parent of worker processes, and says what Ray starts instead of Python."""

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
"""What the parent loads. Nothing that brings Ray itself: its core does not survive a fork."""

_parent: subprocess.Popen[bytes] | None = None
_socket: Path | None = None


def start(modules: Sequence[str] = FOR_ALL) -> None:
    """Have the parent begin to load modules, once in this process's life; it ends when this process does."""
    global _parent, _socket
    if _parent is not None:
        return
    # A folder of this user alone: whoever can write to the socket can run anything.
    _socket = Path(tempfile.mkdtemp(prefix="headway-")) / "parent"
    _parent = start_parent(_socket, modules)


def start_parent(address: Path, modules: Sequence[str]) -> subprocess.Popen[bytes]:
    """A parent that listens at a socket, to be made at this address; it ends as its standard input does."""
    with socket.socket(socket.AF_UNIX) as listener:
        # Stand-ins that come while the parent still loads wait for it.
        listener.bind(str(address))
        listener.listen(socket.SOMAXCONN)
        return subprocess.Popen(
            # By its file: with -m, modules in the folder where the driver was called would come first.
            [sys.executable, server.__file__, str(listener.fileno()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("HEADWAY_DEBUG") else subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is the driver's to answer
        )


def worker_environment() -> dict[str, str]:
    """What `client` needs to know; without a parent, it is Python all the same."""
    start()
    return {client.PARENT: str(_socket)}
