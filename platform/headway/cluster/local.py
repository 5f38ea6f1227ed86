"""A Ray of one machine: started in seconds, without the processes that only a cluster of several needs."""

from __future__ import annotations

import logging
import os
from typing import Any

from headway.cluster import ray_internals
from headway.cluster.fork_server import client
from headway.cluster.fork_server import launch as forking

_VARIABLES = {
    # Ray's own processes ask "the" cluster's dashboard after each other. A local cluster has none, and they
    # would find that of any other cluster on this machine: its ignorance of a training run counts as the
    # run's death.
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:0",
}


def start(environment: dict[str, str]) -> None:
    """Start Ray on this machine for as long as this process lives, and connect to it.

    Args:
        environment: variables of all its processes, besides this process's own.
    """
    import ray

    ray_internals.leave_out_preemption_watcher()
    environment = environment | _VARIABLES | ray_internals.local_node_variables()
    before = dict(os.environ)  # which Ray's processes inherit
    os.environ.update(environment)
    try:
        with ray_internals.node_settings(**_node_settings()):
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


def _node_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {
        "no_monitor": True,  # of a cluster that could grow
        "include_log_monitor": False,  # what workers print is not shown
    }
    # What `client` cannot fork, it leaves to Ray's own script: without that, all is Ray's.
    if ray_internals.setup_script() is not None:
        settings["setup_worker_path"] = client.__file__
    return settings
