"""Start processes of Ray's before they are needed, while the driver still reads its text.

Ray Train starts its controller, its helpers and the workers only once `fit()` is called, one after the other.
A process that is started ahead with the very same environment is taken by the first actor that asks for one.
"""

from __future__ import annotations

import importlib
import json
import logging
import os

CONTROL_PROCESSES = 3
"""Actors of Ray Train besides the workers: its controller, synchronisation, and what cleans up after it."""

_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
_KEPT_SECONDS = 300

logger = logging.getLogger(__name__)


def preload() -> None:
    """Load what a training worker needs besides what its parent has; Ray calls this as the process starts."""
    importlib.import_module("ray.train.torch")


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


def trial_environment() -> dict[str, str]:
    """The environment that Ray Tune gives its trials."""
    from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE

    return DEFAULT_ENV_VARS | {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}


def start_processes(processes: int, environment: dict[str, str] | None = None) -> None:
    """Have this machine's Ray node start so many processes.

    Ray has no public call for it. Should a later version refuse this one, all starts as it would have
    without, only later.

    Args:
        processes: how many.
        environment: variables that their actors add to the job's environment. None for tasks and actors
            without one of their own; Ray Serve gives its replicas one that adds nothing.
    """
    try:
        _request(processes, _serialized(environment))
    except Exception:  # whatever a changed internal interface raises
        logger.warning("processes could not be started ahead", exc_info=True)


def _serialized(environment: dict[str, str] | None) -> str:
    """A runtime environment as Ray writes it: processes are taken where both are the same to the letter."""
    import ray

    job = ray.get_runtime_context().runtime_env.to_dict()
    if environment is None:
        return json.dumps(job, sort_keys=True)
    # Where an actor has an environment of its own, Ray's core writes both as one, without a space.
    both = job | {"env_vars": job.get("env_vars", {}) | environment}
    return json.dumps(both, sort_keys=True, separators=(",", ":"))


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
