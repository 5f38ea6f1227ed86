"""Sets up a worker process of Ray, instead of Ray's own script: has the fork server fork it.

Ray runs `python client.py WORKER ARGUMENT… --serialized-runtime-env-context=JSON --language=PYTHON` for each
process. Its own script imports all of Ray to read that JSON, which takes a second; this one loads little.
It lives as long as the forked process, passes signals on to it, and exits with its status. If no fork server
answers, it becomes plain Python; whatever else a runtime environment can ask for is left to Ray's own script.
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

FORK_SERVER = "HEADWAY_FORK_SERVER"
"""The variable with the path of the fork server's socket."""

_PATIENCE_SECONDS = 40.0
"""How long to wait for a fork server that is still loading; Ray gives a process 60 s to start."""

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="


def main() -> None:
    """Ask for a process and wait until it ends."""
    arguments = sys.argv[1:]
    command = [argument for argument in arguments if not argument.startswith((_CONTEXT, _LANGUAGE))]
    context = _context(arguments)
    variables = context.pop("env_vars", None) or {}
    if not _is_plain_python(context, arguments):
        _leave_to_ray(arguments)
    _set_variables(variables)
    address = os.environ.get(FORK_SERVER)
    if address and not command[0].startswith("-"):  # Python's own flags
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
            process, answers = _ask(connection, address, command)
            os._exit(_end_of(process, answers))
    os.execv(sys.executable, [sys.executable, *command])


def _context(arguments: list[str]) -> dict[str, Any]:
    """The fields of Ray's `RuntimeEnvContext`."""
    fields: dict[str, Any] = {}
    for argument in arguments:
        if argument.startswith(_CONTEXT):
            fields |= json.loads(argument.removeprefix(_CONTEXT) or "{}")
    return fields


def _is_plain_python(context: dict[str, Any], arguments: list[str]) -> bool:
    """Whether the process differs from plain Python only by variables, which are not in `context`."""
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
    if script is None:  # then `local` does not have Ray run this file
        sys.exit("this release of Ray has no script to set up this process")
    os.execv(sys.executable, [sys.executable, script, *arguments])


def _set_variables(variables: dict[str, str]) -> None:
    """Set them as Ray does: `${X}` is the variable X, or nothing if it is not set."""
    for name, value in variables.items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def _ask(connection: socket.socket, address: str, command: list[str]) -> tuple[int, Any]:
    """Ask for a process; returns its id, and the stream on which its exit status will come.

    Raises:
        OSError: no fork server answers.
        ValueError: it does not fork for this environment.
    """
    connection.settimeout(_PATIENCE_SECONDS)
    connection.connect(address)
    answers = connection.makefile("r")
    # Send the order only once the server is ready: it must not fork after this process has given up.
    if answers.readline() != "ready\n":
        raise OSError("the fork server is gone")
    connection.settimeout(None)
    order = json.dumps(_order(command)).encode()
    socket.send_fds(connection, [len(order).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(order)
    return int(answers.readline()), answers


def _order(command: list[str]) -> dict[str, Any]:
    """All that a process inherits from the one that starts it."""
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
    """Wait for the process, passing signals on to it; returns its exit status, as a shell would give it."""

    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    return int(answers.readline() or 1)


if __name__ == "__main__":
    main()
