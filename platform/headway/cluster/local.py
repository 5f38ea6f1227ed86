"""Starts a local Ray in seconds, without the processes that only a cluster of several machines needs."""

from __future__ import annotations

import logging
import os
from typing import Any

from headway.cluster import ray_internals
from headway.cluster.fork_server import client
from headway.cluster.fork_server import launch as fork_server

_VARIABLES = {
    # Processes of Ray ask the dashboard about each other. A local cluster has none, so they would ask that of
    # another cluster on this machine, which does not know the training run, and take it to be dead.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:0",
}


def start(environment: dict[str, str]) -> None:
    """Start Ray on this machine, until this process ends, and connect to it.

    Args:
        environment: variables of all its processes, besides those of this process.
    """
    import ray

    ray_internals.leave_out_preemption_watcher()
    environment = environment | _VARIABLES | ray_internals.local_node_variables()
    before = dict(os.environ)  # Ray's processes inherit what is set meanwhile
    os.environ.update(environment)
    try:
        with ray_internals.node_settings(**_node_settings()):
            ray.init(
                address="local",
                runtime_env={"env_vars": fork_server.worker_environment()},
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    finally:
        for name in environment.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _node_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {
        "no_monitor": True,  # only an autoscaler needs it
        "include_log_monitor": False,  # what workers print is not shown
    }
    # `client` leaves what it cannot fork to Ray's own script; without that script, Ray starts everything.
    if ray_internals.setup_script() is not None:
        settings["setup_worker_path"] = client.__file__
    return settings
