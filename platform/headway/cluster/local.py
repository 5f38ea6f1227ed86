"""A Ray of one machine: started in seconds, without the processes that only a cluster of several needs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Iterator
from functools import partial

from headway.cluster.fork_server import client
from headway.cluster.fork_server import launch as forking

_VARIABLES = {
    # Ray's own processes ask "the" cluster's dashboard after each other. A local cluster has none, and they
    # would find that of any other cluster on this machine: its ignorance of a training run counts as the
    # run's death.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:0",
    # Those that Ray starts ahead by itself are not forked from the parent, and so of no use to this job.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's node asks its own object store for a connection before that listens, and again after a second.
    "RAY_raylet_client_connect_timeout_milliseconds": "50",
    "RAY_raylet_client_num_connect_attempts": "200",
    # Ray warns, on the driver's output, of four times as many processes as may start at once. A trial has
    # six, of which most wait.
    "RAY_worker_maximum_startup_concurrency": "16",
}
_NODE_SETTINGS = {
    "setup_worker_path": client.__file__,
    "no_monitor": True,  # of a cluster that could grow
    "include_log_monitor": False,  # what workers print is not shown
}


def start(environment: dict[str, str]) -> None:
    """Start Ray on this machine for as long as this process lives, and connect to it.

    Args:
        environment: variables of all its processes, besides this process's own.
    """
    import ray

    # One process fewer to start: nobody gives notice before this machine ends.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    environment = environment | _VARIABLES
    before = dict(os.environ)  # which Ray's processes inherit
    os.environ.update(environment)
    try:
        with _own_node_settings():
            ray.init(
                address="local",
                runtime_env={"env_vars": forking.worker_environment()},
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    finally:
        for name in environment.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _own_node_settings() -> Iterator[None]:
    """Give the node that `ray.init` starts what nodes can be given, and `ray.init` has no argument for."""
    from ray._private import parameter

    original = parameter.RayParams
    known = inspect.signature(original).parameters
    own = {name: value for name, value in _NODE_SETTINGS.items() if name in known}
    parameter.RayParams = partial(original, **own)
    try:
        yield
    finally:
        parameter.RayParams = original
