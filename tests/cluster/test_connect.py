"""A local cluster keeps to itself."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import ray
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException


@ray.remote(num_cpus=0)
class Asking:
    def about_itself(self) -> str:
        """What Ray Train's cleaner would hear: no answer leaves a run alone, "unknown" ends it."""
        try:
            return str(get_actor(ray.get_runtime_context().get_actor_id(), timeout=5))
        except RayStateApiException:
            return "nobody answers"


def test_its_processes_ask_no_other_clusters_dashboard(ray_cluster):
    asking = Asking.remote()  # type: ignore[attr-defined]
    assert ray.get(asking.about_itself.remote()) == "nobody answers"
    ray.kill(asking)


def test_it_starts_nothing_that_only_several_machines_need(ray_cluster):
    scripts = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended by now, a zombie among them
            scripts |= {Path(part).name for part in process.cmdline()}
    assert "gcs_server" in scripts, "the local cluster is not this process's"
    assert not scripts & {"monitor.py", "log_monitor.py"}


def test_what_it_needs_of_the_environment_is_gone_afterwards(ray_cluster):
    left = [name for name in os.environ if name.startswith("RAY_raylet_") or name == "HEADWAY_FORK_SERVER"]
    assert not left and "RAY_API_SERVER_ADDRESS" not in os.environ
