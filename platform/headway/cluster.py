"""Ray: connect to a cluster or start a local one, quietly, and run training workers on it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from headway import prestart
from headway.cluster_address import address_problem
from headway.config import ConfigError

_is_local = True
Workers = int | tuple[int, int]
"""How many training workers; or the least and the most of them."""

_RESIZE_SECONDS = 30.0
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
    global _is_local
    _is_local = address == "local"
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri
    start = _start_local if _is_local else _join
    handler = signal.getsignal(signal.SIGTERM)
    try:
        start(address, environment)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"address: no Ray cluster to join at {address!r}: {reason}") from error
    _take_signals_back(handler)


def _take_signals_back(before: Any) -> None:
    """Whoever had an answer to SIGTERM keeps it; and Ray's core, which prints its stack, hears of none.

    Without an answer of their own, processes end by Ray's: `sys.exit`, which leaves no process behind.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before if callable(before) else signal.getsignal(signal.SIGTERM))


def _start_local(address: str, environment: dict[str, str]) -> None:
    import ray

    # Processes of a local cluster inherit the driver's environment. A runtime environment would do the
    # same at a price: the processes that Ray starts ahead are of no use to it.
    # One process fewer to start: nobody gives notice before this machine ends.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        ray.init(address=address, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    finally:
        for name in environment.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _join(address: str, environment: dict[str, str]) -> None:
    import ray

    problem = address_problem(address)
    if problem:
        raise ConnectionError(problem)
    ray.init(
        address=address,
        runtime_env={"env_vars": environment},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


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


def available_gpus() -> int:
    """GPUs of the whole cluster; where there are any, each training worker takes one."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def require_workers(workers: Workers, address: str | None, tracking_uri: str) -> None:
    """Connect, and refuse more training workers than the cluster has GPUs or cores: they would wait for ever.

    Raises:
        ConfigError: there are too few, or no cluster answers.
    """
    connect(address, tracking_uri)
    least = workers if isinstance(workers, int) else workers[0]
    unit, available = ("GPUs", available_gpus()) if available_gpus() else ("cores", available_cpus())
    if least > available:
        raise ConfigError(f"workers: {least} is more than the cluster has {unit}; allowed: up to {available}")


def _cpus_per_worker(workers: int) -> int:
    """The most cores that each worker can have: it lies on one node, with its GPU if it has one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs_gpu = available_gpus() > 0

    def room(cpus: int) -> int:
        """For how many workers of so many cores there is room on all nodes together."""
        by_cores = [(int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0))) for node in nodes]
        return sum(min(fit, gpus) if needs_gpu else fit for fit, gpus in by_cores)

    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(most, 1, -1) if room(cpus) >= workers), 1)


def start_workers_ahead(workers: int) -> None:
    """On a local cluster, start the processes of so many training workers while the driver goes on."""
    if _is_local:
        prestart.start_control_ahead()
        prestart.start_workers_ahead(workers, _cpus_per_worker(workers))


def load_ahead(modules: Sequence[str], processes: int, cpus: int) -> None:
    """On a local cluster, have idle processes load modules while the driver goes on; it does not wait."""
    if _is_local:
        prestart.load_ahead(modules, processes, cpus)


def _quieten() -> None:
    """Ray's own progress, hints and warnings would drown Headway's; its log files keep them."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # How soon Ray Train notices that its workers are done; 2 s where not set.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    warnings.filterwarnings("ignore", module="ray")
    for name in ("ray", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train_on_workers(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: Workers,
    storage: Path,
    progress: Callable[[], int],
) -> None:
    """Call `function(*arguments, worker, launched_at)` on each of a group of Ray Train workers.

    A group that fails is started anew, and `function` goes on from what it saved. Three failures in a row
    end it, unless there was progress between them.

    Args:
        function: what each worker calls.
        arguments: of it.
        workers: how many, or the least and the most; Ray Train then starts as many as there is room for.
        storage: folder for Ray Train's own files.
        progress: a number that grows with what is saved.

    Raises:
        RuntimeError: the function failed on a worker, for the last time.
    """
    from ray.train import TrainingFailedError

    launched_at = time.time()
    done = progress()
    while True:
        try:
            _trainer(function, arguments, workers, storage, launched_at).fit()
            return
        except TrainingFailedError:
            before, done = done, progress()
            if done <= before:
                raise


def _trainer(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: Workers,
    storage: Path,
    launched_at: float,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from headway.process_group import AtNodeAddresses

    cpus = _cpus_per_worker(workers if isinstance(workers, int) else workers[1])
    return TorchTrainer(
        _on_worker,
        train_loop_config={"function": function, "arguments": arguments, "launched_at": launched_at},
        torch_config=None if _is_local else AtNodeAddresses(),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=available_gpus() > 0,
            resources_per_worker={"CPU": cpus},
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=3),
            worker_runtime_env={"env_vars": prestart.worker_environment(cpus)} if _is_local else None,
        ),
    )


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

    from headway.engine.parallel import Worker

    context = ray.train.get_context()
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
    torch.set_num_threads(max(1, cpus))
    device = ray.train.torch.get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, is_leaving=_is_leaving)
    config["function"](*config["arguments"], worker, config["launched_at"])


def _is_leaving() -> bool:
    """Whether a node of this worker's group is being drained: a spot notice, or an operator's wish.

    Ray's public call for it is a barrier of all workers; this only looks, and they agree by themselves.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
