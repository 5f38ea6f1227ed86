"""Start processes of Ray's before they are needed, while the driver still reads its text.

Ray Train starts its controller, its helpers and the workers only once `fit()` is called, one after the other.
A process that is started ahead with the very same environment is taken by the first actor that asks for one.
"""

from __future__ import annotations

import importlib
import json
import logging

from headway.cluster import ray_internals

CONTROL_PROCESSES = 3
"""Actors of Ray Train besides the workers: its controller, synchronisation, and what cleans up after it."""

logger = logging.getLogger(__name__)


def preload() -> None:
    """Load what a training worker needs besides what its parent has; Ray calls this as the process starts."""
    importlib.import_module("ray.train.torch")


def worker_environment(threads: int) -> dict[str, str]:
    """What a training worker's environment has besides: Ray calls `preload` as its process starts.

    Ray would set the number of threads for an actor only, after torch is loaded: too late for the thread
    that computes gradients.
    """
    return ray_internals.setup_hook(f"{__name__}.{preload.__name__}") | {"OMP_NUM_THREADS": str(threads)}


def start_processes(processes: int, environment: dict[str, str] | None = None) -> None:
    """Have this machine's Ray node start so many processes.

    If the node refuses, all starts as it would have without, only later.

    Args:
        processes: how many.
        environment: variables that their actors add to the job's environment. None for tasks and actors
            without one of their own; Ray Serve gives its replicas one that adds nothing.
    """
    try:
        ray_internals.start_processes(processes, _serialized(environment), _own_node())
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


def _own_node() -> str:
    """The address at which this machine's node takes requests."""
    import ray

    [node] = [node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
