"""Stands for the Python that Ray starts: has the parent fork a process that has loaded everything already.

Ray runs `python stand_in.py SOCKET SCRIPT ARGUMENT…` where it would run `python SCRIPT ARGUMENT…`. It loads
little, since it runs once for each process. It lives as long as the forked process does, hands on signals,
and ends as that ends. Where no parent answers, it becomes the Python that it stands for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

_PATIENCE_SECONDS = 40.0
"""To wait for a parent that still loads; Ray gives a process 60 s to come up."""


def main() -> None:
    """Ask for a process and wait for its end."""
    address, *command = sys.argv[1:]
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        process, answers = _ask(connection, address, command)
        os._exit(_end_of(process, answers))
    os.execv(sys.executable, [sys.executable, *command])


def _ask(connection: socket.socket, address: str, command: list[str]) -> tuple[int, Any]:
    """The forked process, and where its end will be told.

    Raises:
        OSError: no parent answers.
        ValueError: it forks none for this environment.
    """
    connection.settimeout(_PATIENCE_SECONDS)
    connection.connect(address)
    answers = connection.makefile("r")
    # Only a parent that is ready is sent an order: it must not fork once this process has lost patience.
    if answers.readline() != "ready\n":
        raise OSError("the parent is gone")
    connection.settimeout(None)
    order = json.dumps(_order(command)).encode()
    socket.send_fds(connection, [len(order).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(order)
    return int(answers.readline()), answers


def _order(command: list[str]) -> dict[str, Any]:
    """All that a process inherits of the one that starts it."""
    return {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109, pathlib takes longer to load than all the rest
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "oom_score": _oom_score(),
    }


def _oom_score() -> str:
    with open("/proc/self/oom_score_adj") as file:  # noqa: PTH123
        return file.read()


def _end_of(process: int, answers: Any) -> int:
    """The process's exit status, as a shell would give it; signals are handed on meanwhile."""

    def hand_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hand_on)
    return int(answers.readline() or 1)


if __name__ == "__main__":
    main()
