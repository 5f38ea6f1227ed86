"""The machines of a run, in words."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
import ray

from headway.cluster import description


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


@pytest.fixture
def connected(monkeypatch):
    def connect(*nodes: dict[str, Any]) -> None:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: list(nodes))

    return connect


def test_nodes_cores_memory_and_gpus_of_a_cluster_are_added_up(connected):
    head = node(CPU=4.0, memory=8 * 2.0**30)
    worker = node(CPU=16.0, memory=64 * 2.0**30, GPU=8.0) | {}
    worker["Resources"]["accelerator_type:H100"] = 1.0
    dead = {"Alive": False, "Resources": {}}
    connected(head, worker, dead)
    assert description.describe_machines() == {
        "headway.cluster": "2 nodes, 20 cores, 72.0 GiB",
        "headway.gpus": "8 x H100",
    }


def test_without_a_cluster_it_is_this_machine(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(description, "gpu_names", lambda: ["NVIDIA H200", "NVIDIA H200"])
    memory = psutil.virtual_memory().total / 2**30
    told = description.describe_machines()
    assert told["headway.cluster"].startswith("1 node, ")
    assert told["headway.cluster"].endswith(f"{memory:.1f} GiB")
    assert told["headway.gpus"] == "2 x NVIDIA H200"
