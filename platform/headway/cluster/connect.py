"""Connects to a Ray cluster or starts a local one, quietly, and runs functions on its cores."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from headway.cluster import local, prestart, ray_internals, secrets
from headway.cluster.address import address_problem
from headway.cluster.fork_server import launch as fork_server
from headway.config.base import ConfigError

_SECONDS_BETWEEN_LOOKS = 1.0
_is_local = True
_before_leaving: list[Callable[[], None]] = []
_PASSED_ON = ("MLFLOW_TRACKING_URI", "HF_HOME", "HF_HUB_OFFLINE")


def connect(address: str | None, tracking_uri: str) -> None:
    """Join the cluster at `address`, or at `RAY_ADDRESS`, or start a local one; at most once per process.

    Args:
        address: of a running cluster, or `auto`; None leaves it to the environment.
        tracking_uri: of MLflow, for what user code logs from workers.

    Raises:
        ConfigError: no cluster answers at the given address.
    """
    quieten()
    import ray

    if ray.is_initialized():
        return
    global _is_local
    _is_local = will_be_local(address)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if _is_local:
            local.start(environment)
        else:
            _join(address, environment)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"address: no Ray cluster to join at {address!r}: {reason}") from error
    _restore_sigterm(handler)


def warm_up(address: str | None, verb: str) -> None:
    """If a local cluster will be started, begin to load what its processes need; returns at once.

    Args:
        address: as in `connect`.
        verb: what the processes will do first.
    """
    if will_be_local(address):
        fork_server.start(fork_server.FOR_SERVING if verb == "serve" else fork_server.FOR_ALL)


def _restore_sigterm(previous: Any) -> None:
    """Restore the handler of SIGTERM, and keep the signal from Ray's core, which would print its stack.

    A process without a handler keeps Ray's, which is `sys.exit` and leaves no process behind.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, previous if callable(previous) else signal.getsignal(signal.SIGTERM))


def _join(address: str, environment: dict[str, str]) -> None:
    import ray

    problem = address_problem(address)
    if problem:
        raise ConnectionError(problem)
    ray.init(
        address=address,
        runtime_env=_runtime_environment(environment, over_client=address.startswith("ray://")),
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _runtime_environment(variables: dict[str, str], over_client: bool) -> dict[str, Any]:
    """What Ray gives to all processes of this job; variables with a password, out of sight.

    Ray's client takes no function, so it leaves them out: only the user's own code would read them.
    """
    shown, secret = secrets.split_secrets(variables)
    if over_client or not secret:
        return {"env_vars": shown}
    return {"env_vars": shown, "worker_process_setup_hook": secrets.setter_of(secret)}


def disconnect() -> None:
    """Leave the cluster; a local one is shut down, with all that runs on it."""
    # Importing Ray takes a second, which a process that never connected should not spend.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def before_leaving(function: Callable[[], None]) -> None:
    """Have `shut_down` call a function before it leaves a cluster that stays."""
    if function not in _before_leaving:
        _before_leaving.append(function)


def shut_down() -> None:
    """Take down what this process serves, also on a cluster that stays, and leave it."""
    ray = sys.modules.get("ray")
    while _before_leaving:
        function = _before_leaving.pop()
        if ray is not None and ray.is_initialized() and not _is_local:
            function()
    disconnect()


def will_be_local(address: str | None) -> bool:
    """Whether `connect` starts a cluster of this machine alone, and joins none, with this address."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def is_local() -> bool:
    """Whether the cluster is a local one, started by this process."""
    return _is_local


def available_cpus() -> int:
    """Cores of the whole cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def available_gpus() -> int:
    """GPUs of the whole cluster; if there are any, each training worker uses one."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def start_processes_ahead(processes: int, environment: dict[str, str] | None = None) -> None:
    """On a local cluster, start processes in the background; see `prestart.start_processes`."""
    if _is_local:
        prestart.start_processes(processes, environment)


def quieten() -> None:
    """Silence Ray's progress, hints and warnings, which would hide Headway's; its log files keep them."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray_internals.set_train_defaults()
    warnings.filterwarnings("ignore", module="ray")
    for name in ("ray", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def map_on_cluster(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    cpus: int,
    gpus: float = 0.0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """Results of `function(*arguments)` for each of `calls`, in order; a call waits for a node with room.

    Args:
        function: what is called, in a process of the cluster.
        calls: its arguments.
        cpus: cores of one node that each call holds.
        gpus: GPUs of that node that each call holds.
        progress: told every second how many calls are done.

    Raises:
        Exception: whatever a call raised, as it was raised.
    """
    import ray

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
    pending = references = [remote.remote(*arguments) for arguments in calls]
    try:
        while pending:
            progress(len(references) - len(pending))
            done, pending = ray.wait(pending, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for reference in pending:
            ray.cancel(reference)
        raise error.cause from error
    return ray.get(references)
