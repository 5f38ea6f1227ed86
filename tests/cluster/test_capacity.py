"""A cluster that has too few nodes is waited for if they can come, and refused if they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
import ray.autoscaler.sdk

from headway.cluster import capacity, connect, ray_internals
from headway.cluster.capacity import can_never_come, require_processes
from headway.config.base import ConfigError

NODE = {"CPU": 8.0, "GPU": 1.0}


class Autoscaled:
    """A cluster whose autoscaler answers after a few seconds and adds a node a second then, up to `most`.

    Attributes:
        nodes: what `ray.nodes` says.
        asked: every request, in order.
        seconds: that have passed.
        events: what happens after so many of them.
    """

    def __init__(self, node: dict[str, float], most: int, answers: bool | None = True) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.asked: list[list[dict[str, float]]] = []
        self.seconds = 0.0
        self.events: dict[float, Callable[[], Any]] = {}
        self._node, self._most, self._answers = node, most, answers

    def add(self, resources: dict[str, float], **more: Any) -> None:
        address = f"10.0.0.{len(self.nodes)}"
        node = {"Alive": True, "NodeManagerAddress": address, "Resources": resources, "Labels": {}}
        self.nodes.append(node | more)

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)

    def refuses(self, since: int) -> bool | None:
        if self._answers is None or self.seconds < 3.0:
            return None
        bundles = self.asked[-1]
        room = min(self._node.get(name, 0.0) // amount for name, amount in bundles[0].items())
        return room * self._most < len(bundles)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.events.get(self.seconds, lambda: None)()
        if self.refuses(0) is False and len(self.nodes) <= self._most:
            self.add(self._node)


@pytest.fixture
def autoscaled(monkeypatch):
    """Makes the cluster that is joined such a one, with a head without cores."""

    def make(node: dict[str, float], most: int, answers: bool | None = True) -> Autoscaled:
        cluster = Autoscaled(node, most, answers)
        cluster.add({"memory": 1.0})
        total = {name: lambda name=name: total_of(cluster, name) for name in ("CPU", "GPU")}
        monkeypatch.setattr(connect, "connect", lambda address, tracking_uri: None)
        monkeypatch.setattr(connect, "is_local", lambda: False)
        monkeypatch.setattr(connect, "available_cpus", total["CPU"])
        monkeypatch.setattr(connect, "available_gpus", total["GPU"])
        monkeypatch.setattr(ray, "nodes", lambda: cluster.nodes)
        monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", cluster.request)
        monkeypatch.setattr(ray_internals, "cluster_version", lambda: 0)
        monkeypatch.setattr(ray_internals, "is_growth_refused", cluster.refuses)
        monkeypatch.setattr(ray_internals, "launch_problem", lambda: None)
        monkeypatch.setattr(capacity.time, "monotonic", lambda: cluster.seconds)
        monkeypatch.setattr(capacity.time, "sleep", cluster.sleep)
        return cluster

    return make


def total_of(cluster: Autoscaled, name: str) -> int:
    return int(sum(node["Resources"].get(name, 0.0) for node in cluster.nodes if node["Alive"]))


def test_more_workers_than_a_machine_has_gpus_are_refused(pretend_nodes):
    pretend_nodes({"CPU": 16.0, "GPU": 2.0})
    with pytest.raises(ConfigError, match="workers: 3 is more than the cluster has GPUs; free now: 2"):
        require_processes(3, None, "sqlite://")


def test_nodes_with_gpus_are_asked_for_and_waited_for(autoscaled):
    cluster = autoscaled(NODE, most=8)
    said: list[str] = []
    require_processes(4, "head:6379", "", said.append)
    assert len(cluster.nodes) == 1 + 4
    assert cluster.asked[0] == [{"CPU": 1, "GPU": 1}] * 4
    assert cluster.asked[-1] == [], "nodes stay for ever where a request does"
    assert said[0] == "waiting for nodes for 4 workers with a GPU each, 0 fit now (0 s)"
    assert "3 fit now" in said[-1]


def test_nothing_is_asked_for_where_nothing_is_missing(autoscaled):
    """Another job's request would be replaced."""
    cluster = autoscaled(NODE, most=8)
    cluster.add(NODE)
    require_processes(1, "head:6379", "")
    assert cluster.asked == []


def test_without_gpus_cores_are_asked_for(autoscaled):
    cluster = autoscaled({"CPU": 2.0}, most=2)
    require_processes(3, "head:6379", "")
    assert total_of(cluster, "CPU") >= 3
    assert [{"CPU": 1}] * 3 in cluster.asked


@pytest.mark.parametrize("workers", [9, 100])
def test_more_than_can_come_is_refused_at_once(autoscaled, workers):
    cluster = autoscaled(NODE, most=8)
    message = f"workers: {workers} is more than the cluster has GPUs, or can add; free now: "
    with pytest.raises(ConfigError, match=message):
        require_processes(workers, "head:6379", "")
    assert cluster.seconds < 10.0
    assert [{"CPU": 1}] * workers not in cluster.asked, "nodes with GPUs would come for their cores"
    assert cluster.asked[-1] == []


def test_it_gives_up_and_says_after_how_long_and_why(autoscaled, monkeypatch):
    cluster = autoscaled({"CPU": 1.0}, most=1, answers=None)  # as Ray's older autoscaler
    monkeypatch.setattr(ray_internals, "launch_problem", lambda: "quota exceeded")
    with pytest.raises(TimeoutError) as error:
        require_processes(2, "head:6379", "")
    assert str(error.value) == (
        "gave up after 30 min of waiting for nodes for 2 workers, 0 fit now; "
        "the last one was not started: quota exceeded"
    )
    assert cluster.asked[-1] == []


@pytest.mark.parametrize(
    ("labels", "resources"),
    [({}, {"CPU": 2.0}), ({"ray.io/accelerator-type": "H100"}, {"CPU": 4.0, "GPU": 2.0})],
)
def test_a_node_that_died_is_given_time_to_return(autoscaled, labels, resources):
    """On a cluster without an autoscaler, others start it again."""
    cluster = autoscaled({}, most=0)
    cluster.add({}, Alive=False, DeathReason=2, Labels=labels)
    cluster.events[60.0] = lambda: cluster.nodes[-1].update(Alive=True, Resources=resources)
    require_processes(2, "head:6379", "")
    assert cluster.seconds == 60.0


def test_a_node_that_died_is_not_waited_for_where_the_others_suffice(autoscaled):
    cluster = autoscaled({}, most=0)
    cluster.add({"CPU": 2.0})
    cluster.add({}, Alive=False, DeathReason=2)
    require_processes(2, "head:6379", "")
    assert cluster.seconds < 10.0


def test_a_node_that_was_taken_away_on_purpose_is_not_waited_for(autoscaled):
    cluster = autoscaled({}, most=0)
    cluster.add({}, Alive=False, DeathReason=4)
    with pytest.raises(ConfigError, match="workers: 1 is more than the cluster has cores"):
        require_processes(1, "head:6379", "")
    assert cluster.seconds < 10.0


def test_what_can_never_come_is_told_and_nothing_stays_asked_for(autoscaled):
    cluster = autoscaled(NODE, most=8)
    assert not can_never_come([NODE] * 8)
    assert can_never_come([NODE] * 9)
    assert cluster.asked[-1] == []
