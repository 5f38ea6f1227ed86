"""Starts Ray's processes before they are needed, while the driver still reads its text.

Ray Train starts its controller, its helpers and the workers only when `fit()` is called, one after another. A
process that was started ahead with exactly the same environment is used by the first actor that needs one.
"""

from __future__ import annotations

import importlib
import json
import logging

from headway.cluster import ray_internals

CONTROL_PROCESSES = 3
"""Actors of Ray Train besides the workers: its controller, synchronisation and cleaner."""

logger = logging.getLogger(__name__)


def preload() -> None:
    """Load what a training worker needs and the fork server must not load; Ray calls this at the start."""
    importlib.import_module("ray.train.torch")


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a training worker: Ray calls `preload` when its process starts.

    Ray sets the number of threads only when an actor starts, after torch is loaded, which is too late for the
    thread that computes gradients.
    """
    return ray_internals.setup_hook(f"{__name__}.{preload.__name__}") | {"OMP_NUM_THREADS": str(threads)}


def start_processes(processes: int, environment: dict[str, str] | None = None) -> None:
    """Have this machine's Ray node start processes.

    If the node refuses, Ray starts them later, when they are needed.

    Args:
        processes: how many.
        environment: variables that their actors add to the job's environment; None for tasks, and for actors
            without a runtime environment. Ray Serve gives its replicas an empty one.
    """
    try:
        ray_internals.start_processes(processes, _serialized(environment), _local_node())
    except Exception:  # whatever a changed internal interface raises
        logger.warning("processes could not be started ahead", exc_info=True)


def _serialized(environment: dict[str, str] | None) -> str:
    """A runtime environment as Ray serialises it: a process is used only if the text is exactly the same."""
    import ray

    job = ray.get_runtime_context().runtime_env.to_dict()
    if environment is None:
        return json.dumps(job, sort_keys=True)
    # If an actor has its own environment, Ray's core merges both and serialises them without spaces.
    both = job | {"env_vars": job.get("env_vars", {}) | environment}
    return json.dumps(both, sort_keys=True, separators=(",", ":"))


def _local_node() -> str:
    """The address at which this machine's node takes requests."""
    import ray

    [node] = [node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
