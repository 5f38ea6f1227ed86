"""Ray: connect to a cluster or start a local one, quietly, and run training workers on it."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headway.config import ConfigError
from headway.engine.parallel import Worker

_is_local = True
_PASSED_ON = ("MLFLOW_TRACKING_URI", "HF_HOME", "HF_HUB_OFFLINE")


def connect(address: str | None, tracking_uri: str) -> None:
    """Join the cluster at `address`, or at `RAY_ADDRESS`, or start a local one; at most once a process.

    Args:
        address: of a running cluster, or `auto`; None leaves it to the environment.
        tracking_uri: of MLflow, for whatever the user's code logs from workers.

    Raises:
        ConfigError: an address was given and no cluster answers there.
    """
    _quieten()
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    problem = address_problem(address)
    if problem:
        raise ConfigError(f"address: no Ray cluster at {address!r}: {problem}")
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": environment | {"MLFLOW_TRACKING_URI": tracking_uri}},
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    global _is_local
    _is_local = address == "local"
    if _is_local:
        settings |= {"include_dashboard": False}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"address: no Ray cluster at {address!r}: {reason}") from error


def address_problem(address: str) -> str | None:
    """Why nothing can answer at a `host:port`, found in two seconds; Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def disconnect() -> None:
    """Leave the cluster; a local one ends, with all that runs on it."""
    # Importing Ray takes a second: nobody who never connected should wait for it.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def shut_down() -> None:
    """Take down what is served, also on a cluster that stays, and leave it."""
    ray, serve = sys.modules.get("ray"), sys.modules.get("ray.serve")
    if ray is not None and serve is not None and ray.is_initialized() and not _is_local:
        serve.shutdown()
    disconnect()


def available_cpus() -> int:
    """Cores of the whole cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def require_workers(workers: int) -> None:
    """Refuse more workers than the cluster has cores for: they would wait for ever.

    Raises:
        ConfigError: there are too few.
    """
    if workers > available_cpus():
        raise ConfigError(
            f"workers: {workers} is more than the cluster has cores; allowed: up to {available_cpus()}"
        )


def _quieten() -> None:
    """Ray's own progress, hints and warnings would drown Headway's; its log files keep them."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    warnings.filterwarnings("ignore", module="ray")
    for name in ("ray", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train_on_workers(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: int,
    storage: Path,
    launched_at: float,
) -> None:
    """Call `function(*arguments, worker, launched_at)` on each of a group of Ray Train workers.

    A group that fails is started anew, up to three times; `function` goes on from what it saved.

    Raises:
        ConfigError: more workers than the cluster has cores.
        RuntimeError: the function failed on a worker, for the last time.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    require_workers(workers)
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"function": function, "arguments": arguments, "launched_at": launched_at},
        scaling_config=ScalingConfig(
            num_workers=workers, resources_per_worker={"CPU": max(1, available_cpus() // workers)}
        ),
        run_config=RunConfig(
            name="train", storage_path=str(storage.resolve()), failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()


def map_on_cores(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    cores: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """Results of `function(*arguments)` for each of `calls`, in order, each on so many cores of the cluster.

    Raises:
        Exception: whatever a call raised, as it was raised.
    """
    import ray

    remote = ray.remote(num_cpus=cores)(function)
    pending = references = [remote.remote(*arguments) for arguments in calls]
    try:
        while pending:
            progress(len(references) - len(pending))
            done, pending = ray.wait(pending, num_returns=1)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        for reference in pending:
            ray.cancel(reference)
        raise error.cause from error
    return ray.get(references)


def _on_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
    torch.set_num_threads(max(1, cpus))
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    config["function"](*config["arguments"], worker, config["launched_at"])
