"""Start processes of Ray's before they are needed, while the driver still reads its text.

Ray Train starts its controller, two helpers of it and the workers only once `fit()` is called, one after
the other, and each worker then loads torch and transformers: most of the time to the first step. A process
that is started ahead with the very same environment is taken by the first actor that asks for one.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence

CONTROL_PROCESSES = 3
"""Actors of Ray Train besides the workers: its controller, synchronisation, and what cleans up after it."""

_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
_KEPT_SECONDS = 300

logger = logging.getLogger(__name__)


def preload() -> None:
    """Load what a training worker needs; Ray calls this in each of their processes."""
    for module in ("ray.train.torch", "headway.steps.pretrain", "headway.steps.finetune"):
        importlib.import_module(module)


def control_environment() -> dict[str, str]:
    """The environment that Ray Train gives its controller, and all that it starts."""
    from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    return {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0"} | get_env_vars_to_propagate()


def worker_environment(threads: int) -> dict[str, str]:
    """What a training worker's environment has besides: Ray calls `preload` as its process starts.

    Ray would set the number of threads for an actor only, after torch is loaded: too late for the thread
    that computes gradients.
    """
    return {_HOOK: f"{__name__}.{preload.__name__}", "OMP_NUM_THREADS": str(threads)}


def start_control_ahead() -> None:
    """Have this machine's Ray node start the processes of Ray Train's own actors."""
    # As Ray's Python writes an actor's environment.
    _start_ahead(CONTROL_PROCESSES, json.dumps({"env_vars": control_environment()}, sort_keys=True))


def start_workers_ahead(workers: int, threads: int) -> None:
    """Have this machine's Ray node start the processes of so many training workers, with so many threads."""
    environment = control_environment() | worker_environment(threads)
    # As Ray's core writes it where an actor adds to what it inherits: without a space. A process is taken
    # for an actor only if the two are the same to the letter.
    serialized = json.dumps({"env_vars": environment}, sort_keys=True, separators=(",", ":"))
    _start_ahead(workers, serialized)


def load_ahead(modules: Sequence[str], processes: int, cpus: int) -> None:
    """Have `processes` of Ray's idle processes, of `cpus` cores each, load modules.

    Actors that add nothing to the environment are started in them.
    """
    import ray

    def load() -> None:
        for module in modules:
            importlib.import_module(module)

    task = ray.remote(num_cpus=cpus, max_retries=0)(load)
    for _ in range(processes):
        task.remote()


def _start_ahead(processes: int, serialized_environment: str) -> None:
    """Ask for idle processes.

    Ray has no public call for it. Should a later version refuse this one, training starts as it would
    have without, only later.
    """
    try:
        _request(processes, serialized_environment)
    except Exception:  # whatever a changed internal interface raises
        logger.warning("worker processes could not be started ahead", exc_info=True)


def _request(processes: int, serialized_environment: str) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.worker import global_worker
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    [node] = [node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        num_workers=processes,
        keep_alive_duration_secs=_KEPT_SECONDS,
        job_id=global_worker.current_job_id.binary(),
    )
    request.runtime_env_info.serialized_runtime_env = serialized_environment
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    service = node_manager_pb2_grpc.NodeManagerServiceStub(init_grpc_channel(address, asynchronous=False))
    service.PrestartWorkers(request, timeout=10)
