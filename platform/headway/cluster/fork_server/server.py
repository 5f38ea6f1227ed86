"""The fork server: loads modules once, then forks a process for each client that asks."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_READ_WHEN_LOADED = (
    *("LD_", "PYTHON", "TORCH", "PYTORCH", "HF_", "TRANSFORMERS_"),
    *("CUDA_", "OMP_", "MKL_", "DNNL_", "ONEDNN_"),
)
"""Variables that libraries read when they are loaded; a process with other values cannot be forked."""

_SET_AFTER_FORK = {"OMP_NUM_THREADS"}
_ORDER_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """What a client asks for: the fields of `client._order`, and its standard input, output and error."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    niceness: int
    blocked_signals: list[int]
    oom_score: str
    files: list[int]

    def fits(self, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
        """Whether this server can fork for the order, given its environment before and after loading modules.

        Libraries set some variables themselves when they are loaded, as they may have done in the driver.
        """
        return all(
            self.environment.get(name) in (before.get(name), after.get(name))
            for name in {*self.environment, *before, *after}
            if name.startswith(_READ_WHEN_LOADED) and name not in _SET_AFTER_FORK
        )


class ForkServer:
    """Takes orders at a socket, forks, and tells each client how its process ended.

    Args:
        listener: the socket.
        owner: a file descriptor that reaches its end when the driver ends.
        environment: of this process before it loaded modules.
    """

    def __init__(self, listener: socket.socket, owner: int, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._listener = listener
        self._owner = owner
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, socket.socket] = {}
        self._ended, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> Order | None:
        """Take orders. Returns None once the owner ends, and in each forked process its order."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for file in (self._listener, self._owner, self._ended):
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._owner:
                    self._kill(*self._clients)
                    return None
                if key.fileobj == self._ended:
                    os.read(self._ended, 4096)
                    self._reap()
                elif key.fileobj == self._listener:
                    order = self._take_order()
                    if order is not None:
                        return order
                else:
                    self._kill_orphan(key.fileobj)

    def _take_order(self) -> Order | None:
        """Fork for the next client; returns its order in the forked process, None in this one."""
        connection, _ = self._listener.accept()
        files: list[int] = []
        try:
            connection.settimeout(_ORDER_SECONDS)
            connection.sendall(b"ready\n")
            order = _received(connection, files)
            if order.fits(self._environment, os.environ):
                process = os.fork()
                if process == 0:
                    self._close_inherited(connection)
                    return order
                connection.sendall(b"%d\n" % process)
                self._clients[process] = connection
                self._selector.register(connection, selectors.EVENT_READ)
            else:
                connection.sendall(b"no\n")
                connection.close()
        except (OSError, ValueError, TypeError):
            connection.close()
        for file in files:
            os.close(file)
        return None

    def _close_inherited(self, connection: socket.socket) -> None:
        """In a forked process: close what belongs to the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        os.close(self._ended)
        os.close(self._woken)
        for inherited in (self._listener, connection, *self._clients.values()):
            inherited.close()

    def _kill_orphan(self, connection: Any) -> None:
        """Kill the process of a client that was killed."""
        self._selector.unregister(connection)
        self._kill(*(process for process, client in self._clients.items() if client is connection))

    def _reap(self) -> None:
        """Tell the clients of processes that have ended, and with which status."""
        while self._clients:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            connection = self._clients.pop(process)
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))

    def _kill(self, *processes: int) -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)  # unreaped, so no other process can have the id


def _received(connection: socket.socket, files: list[int]) -> Order:
    """Receive an order; its files are added to `files` as soon as they are open."""
    size, received, _, _ = socket.recv_fds(connection, 8, 3)
    files += received
    with connection.makefile("rb") as stream:
        return Order(**json.loads(stream.read(int.from_bytes(size, "big"))), files=files)


def become(order: Order) -> None:
    """Run what was ordered as if Python had been started for it."""
    os.setpgid(0, 0)  # Ray kills the whole group of a process
    for number, file in enumerate(order.files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    os.setpriority(os.PRIO_PROCESS, 0, order.niceness)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(order.oom_score)
    signal.pthread_sigmask(signal.SIG_SETMASK, order.blocked_signals)
    _set_loaded_libraries(order.environment)
    sys.argv = order.command
    sys.path[0] = str(Path(order.command[0]).parent)
    runpy.run_path(order.command[0], run_name="__main__")


def _set_loaded_libraries(environment: Mapping[str, str]) -> None:
    """Set what libraries usually set when they are loaded, and forked processes must not share."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None and "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # also for threads that start later


def main() -> None:
    """`python server.py FD MODULE…`, where FD is a listening socket; ends when standard input is closed."""
    file, *modules = sys.argv[1:]
    with socket.socket(fileno=int(file)) as listener:
        folder = Path(listener.getsockname()).parent
        environment = dict(os.environ)
        # Lets libraries ask whether there are GPUs without initialising CUDA, which does not survive a fork.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        gc.disable()  # while modules load there is nothing to collect, but the collector would keep looking
        for module in modules:
            importlib.import_module(module)
        gc.freeze()  # keeps the collector from writing to shared pages, which would copy them
        gc.enable()
        order = ForkServer(listener, sys.stdin.fileno(), environment).serve()
    if order is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        become(order)


if __name__ == "__main__":
    main()
