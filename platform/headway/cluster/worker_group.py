"""Groups of Ray Train's workers: what each of them gets, and how a function runs on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.cluster import connect, prestart, ray_internals
from headway.config.base import ConfigError

Workers = int | tuple[int, int]
"""How many training workers; or the least and the most of them."""

_RESIZE_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerResources:
    """What each of some training processes gets of a cluster; small, since it travels to trials.

    Attributes:
        cpus: cores.
        gpus: GPUs; of a fraction, several processes share one.
        is_local: whether all of the cluster is one machine.
    """

    cpus: int
    gpus: float = 0.0
    is_local: bool = True


def worker_resources(processes: int, gpus: float | None = None) -> WorkerResources:
    """The largest share that each of so many processes can have at once.

    Args:
        processes: training at the same time.
        gpus: of each process; one where the cluster has any, when None.
    """
    if gpus is None:
        gpus = 1.0 if connect.available_gpus() else 0.0
    return WorkerResources(_cpus_of_each(processes, gpus), gpus, connect.is_local())


def _cpus_of_each(processes: int, gpus: float) -> int:
    """The most cores that each process can have: it lies on one node, with its GPU if it has one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(cpus: int) -> int:
        """For how many processes of so many cores there is room on all nodes together."""
        by_cores = [(int(node.get("CPU", 0)) // cpus, node.get("GPU", 0)) for node in nodes]
        return sum(min(fit, gpu_slots(found, gpus)) if gpus else fit for fit, found in by_cores)

    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(most, 1, -1) if room(cpus) >= processes), 1)


def gpu_slots(gpus: float, of_each: float) -> int:
    """How many processes find `of_each` GPUs among so many; a fraction is of one GPU."""
    if of_each < 1:
        return int(gpus) * int(1 / of_each + 1e-9)
    return int(gpus // of_each)


def require_workers(workers: Workers, address: str | None, tracking_uri: str) -> None:
    """Connect, and refuse more training workers than the cluster has GPUs or cores: they would wait for ever.

    Raises:
        ConfigError: there are too few, or no cluster answers.
    """
    connect.connect(address, tracking_uri)
    least = workers if isinstance(workers, int) else workers[0]
    gpus = connect.available_gpus()
    unit, available = ("GPUs", gpus) if gpus else ("cores", connect.available_cpus())
    if least > available:
        raise ConfigError(f"workers: {least} is more than the cluster has {unit}; allowed: up to {available}")


def start_workers_ahead(workers: int, resources: WorkerResources | None = None) -> None:
    """On a local cluster, start the processes of so many training workers while the driver goes on."""
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

    A group that fails is started again, and `function` goes on from what it saved. More than `retries`
    failures in a row end it, unless there was progress between them.

    Args:
        function: what each worker calls.
        arguments: of it.
        workers: how many, or the least and the most; Ray Train then starts as many as there is room for.
        storage: folder for Ray Train's own files.
        progress: a number that grows with what is saved.
        share: of each worker; the largest they can all have when None.
        retries: times that a group without progress is started again.

    Raises:
        RuntimeError: the function failed on a worker, for the last time.
    """
    connect.quieten()  # a trial of a sweep calls this in a process that never connected
    from ray.train import TrainingFailedError

    launched_at = time.time()
    done = progress()
    while True:
        try:
            _trainer(function, arguments, workers, storage, launched_at, resources, retries).fit()
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
    resources: WorkerResources | None = None,
    retries: int = 3,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

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
            worker_runtime_env={"env_vars": environment} if resources.is_local else None,
        ),
    )


def _process_group(resources: WorkerResources) -> Any:
    """How the workers meet; NCCL refuses two of them on one GPU."""
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
    # Without a GPU of its own, a worker leaves those that it sees to others.
    device = ray.train.torch.get_device() if ray.get_gpu_ids() else torch.device("cpu")
    rank, size = context.get_world_rank(), context.get_world_size()
    worker = Worker(rank, size, device, is_leaving=ray_internals.is_leaving)
    config["function"](*config["arguments"], worker, config["launched_at"])
