"""Sets up a worker of Ray's, in place of Ray's own script: has the parent fork it, with everything loaded.

Ray runs `python client.py WORKER ARGUMENT… --serialized-runtime-env-context=JSON --language=PYTHON` for
each process. Its own script imports all of Ray to read that JSON, a second of a core; this one loads little.
It lives as long as the forked process does, hands on signals, and ends as that ends. Where no parent
answers, it becomes the Python that it stands for; what else a runtime environment can ask for, it leaves to
Ray's own script.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
from typing import Any

PARENT = "HEADWAY_PARENT"
"""The variable with the address of the parent's socket."""

_PATIENCE_SECONDS = 40.0
"""To wait for a parent that still loads; Ray gives a process 60 s to come up."""

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="


def main() -> None:
    """Ask for a process and wait for its end."""
    arguments = sys.argv[1:]
    command = [argument for argument in arguments if not argument.startswith((_CONTEXT, _LANGUAGE))]
    context = _context(arguments)
    variables = context.pop("env_vars", None) or {}
    if not _is_plain_python(context, arguments):
        _leave_to_ray(arguments)
    _set_variables(variables)
    address = os.environ.get(PARENT)
    if address and not command[0].startswith("-"):  # Python's own flags
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
            process, answers = _ask(connection, address, command)
            os._exit(_end_of(process, answers))
    os.execv(sys.executable, [sys.executable, *command])


def _context(arguments: list[str]) -> dict[str, Any]:
    """The fields of Ray's `RuntimeEnvContext`."""
    found: dict[str, Any] = {}
    for argument in arguments:
        if argument.startswith(_CONTEXT):
            found |= json.loads(argument.removeprefix(_CONTEXT) or "{}")
    return found


def _is_plain_python(context: dict[str, Any], arguments: list[str]) -> bool:
    """Whether nothing but its variables, which are no part of `context`, sets the process apart."""
    asked = {name: value for name, value in context.items() if value}
    languages = {argument for argument in arguments if argument.startswith(_LANGUAGE)}
    return (
        asked.pop("py_executable", sys.executable) == sys.executable
        and not asked
        and languages <= {f"{_LANGUAGE}PYTHON"}
    )


def _leave_to_ray(arguments: list[str]) -> None:
    from headway.cluster.ray_internals import setup_script

    script = setup_script()
    if script is None:  # `local` would not have had this file started
        sys.exit("this release of Ray has no script that sets such a process up")
    os.execv(sys.executable, [sys.executable, script, *arguments])


def _set_variables(variables: dict[str, str]) -> None:
    """Set them as Ray does: `${X}` is the variable X, or nothing where there is none."""
    for name, value in variables.items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


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
