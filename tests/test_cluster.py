"""A local cluster keeps to itself."""

from __future__ import annotations

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
