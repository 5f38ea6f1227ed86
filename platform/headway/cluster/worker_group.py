"""Runs a function on a group of Ray Train's workers, and says what each worker gets of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.cluster import connect, prestart, ray_internals

Workers = int | tuple[int, int]
"""The number of training workers, or its minimum and maximum."""

_RESIZE_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerResources:
    """What each of some training processes gets of a cluster; small, since it is sent to trials.

    Attributes:
        cpus: cores.
        gpus: GPUs; with a fraction, several processes share one.
        is_local: whether the cluster is a local one.
    """

    cpus: int
    gpus: float = 0.0
    is_local: bool = True


def worker_resources(processes: int, gpus: float | None = None) -> WorkerResources:
    """The most that each of so many processes can have at once.

    Args:
        processes: training at the same time.
        gpus: of each process; None for one if the cluster has any.
    """
    if gpus is None:
        gpus = 1.0 if connect.available_gpus() else 0.0
    return WorkerResources(_cpus_of_each(processes, gpus), gpus, connect.is_local())


def call_resources(calls: int) -> WorkerResources:
    """The most that each of so many independent calls can have; those without room wait for others."""
    return worker_resources(max(1, min(calls, connect.available_gpus() or connect.available_cpus())))


def fitting_processes(resources: WorkerResources) -> int:
    """How many processes with these resources fit on all nodes that are there now."""
    return _capacity(_nodes(), resources.cpus, resources.gpus)


def _cpus_of_each(processes: int, gpus: float) -> int:
    """The most cores that each process can have: all are on one node, with its GPU if it has one."""
    nodes = _nodes()
    max_cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(max_cpus, 1, -1) if _capacity(nodes, cpus, gpus) >= processes), 1)


def _capacity(nodes: list[dict[str, float]], cpus: int, gpus: float) -> int:
    by_cores = [(int(node.get("CPU", 0)) // cpus, node.get("GPU", 0)) for node in nodes]
    return sum(min(fit, gpu_slots(on_node, gpus)) if gpus else fit for fit, on_node in by_cores)


def _nodes() -> list[dict[str, float]]:
    """What each node has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def gpu_slots(gpus: float, of_each: float) -> int:
    """How many processes can have `of_each` GPUs each; a fraction is of a single GPU."""
    if of_each < 1:
        return int(gpus) * int(1 / of_each + 1e-9)
    return int(gpus // of_each)


def start_workers_ahead(workers: int, resources: WorkerResources | None = None) -> None:
    """On a local cluster, start the processes of training workers in the background."""
    resources = resources or worker_resources(workers)
    if resources.is_local and (control := ray_internals.train_environment()) is not None:
        prestart.start_processes(prestart.CONTROL_PROCESSES, control)
        prestart.start_processes(workers, control | prestart.worker_environment(resources.cpus))


def train_on_workers(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: Workers,
    storage: Path,
    progress: Callable[[], int],
    resources: WorkerResources | None = None,
    retries: int = 3,
) -> None:
    """Call `function(*arguments, worker, launched_at)` on each of a group of Ray Train workers.

    A group that fails is started again, and `function` continues from what it saved. After more than
    `retries` failures in a row without progress, the error is raised; at once if it would only come again.

    Args:
        function: what each worker calls.
        arguments: of `function`.
        workers: how many, or the minimum and maximum; Ray Train then starts as many as fit.
        storage: folder for Ray Train's own files.
        progress: returns a number that grows with what is saved.
        resources: of each worker; None for the most that all can have.
        retries: how often a group without progress is started again.

    Raises:
        ConfigError: a worker found a wrong setting.
        TrainingError: the loss is no finite number.
        RuntimeError: the function failed on a worker, for the last time.
    """
    connect.quieten()  # a trial of a sweep calls this in a process that never connected
    from ray.train import TrainingFailedError

    from headway.cluster.lasting_failures import lasting_cause

    launched_at = time.time()
    done = progress()
    # Before anything can fail: a node that has just died would be left out, and its GPU with it.
    resources = resources or worker_resources(workers if isinstance(workers, int) else workers[1])
    while True:
        try:
            _trainer(function, arguments, workers, storage, launched_at, resources, retries).fit()
            return
        except TrainingFailedError as failure:
            if (cause := lasting_cause(failure)) is not None:
                raise cause from None
            before, done = done, progress()
            if done <= before:
                raise


def _trainer(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    workers: Workers,
    storage: Path,
    launched_at: float,
    resources: WorkerResources | None = None,
    retries: int = 3,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from headway.cluster.lasting_failures import EndAtOnce

    resources = resources or worker_resources(workers if isinstance(workers, int) else workers[1])
    environment = prestart.worker_environment(resources.cpus)
    return TorchTrainer(
        _on_worker,
        train_loop_config={"function": function, "arguments": arguments, "launched_at": launched_at},
        torch_config=_process_group(resources),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus}
            | ({"GPU": resources.gpus} if resources.gpus else {}),
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=retries),
            callbacks=[EndAtOnce()],
            worker_runtime_env={"env_vars": environment} if resources.is_local else None,
        ),
    )


def _process_group(resources: WorkerResources) -> Any:
    """How the workers communicate; NCCL refuses two workers on one GPU."""
    from ray.train.torch import TorchConfig

    from headway.cluster.process_group import AtNodeAddresses

    backend = "gloo" if 0 < resources.gpus < 1 else None
    return TorchConfig(backend=backend) if resources.is_local else AtNodeAddresses(backend=backend)


def _on_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    from headway.engine.parallel.worker import Worker

    context = ray.train.get_context()
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))
    torch.set_num_threads(max(1, cpus))
    # A worker that Ray gave no GPU must not use those that it sees.
    device = ray.train.torch.get_device() if ray.get_gpu_ids() else torch.device("cpu")
    rank, size = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, size, device, is_leaving=ray_internals.is_leaving)
    config["function"](*config["arguments"], worker, config["launched_at"])
