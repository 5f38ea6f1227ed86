"""What training workers are given of a cluster."""

from __future__ import annotations

import time

import pytest
import ray

from headway import cluster
from headway.config import ConfigError


def pretend(monkeypatch, *nodes):
    """The cluster as if it had nodes of these resources."""
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])


@pytest.fixture
def two_gpus(ray_cluster, monkeypatch):
    """The cluster as if it had two GPUs and sixteen cores."""
    pretend(monkeypatch, {"CPU": 16.0, "GPU": 2.0})


def scaling(tmp_path, workers):
    return cluster._trainer(
        lambda worker, launched_at: None, (), workers, tmp_path, time.time()
    ).scaling_config


def test_without_gpus_workers_share_the_cores(ray_cluster, tmp_path):
    config = scaling(tmp_path, 2)
    assert not config.use_gpu
    assert config.resources_per_worker == {"CPU": 1}


def test_where_there_are_gpus_each_worker_takes_one(two_gpus, tmp_path):
    config = scaling(tmp_path, 2)
    assert config.use_gpu
    assert config.num_gpus_per_worker == 1
    assert config.num_cpus_per_worker == 8


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus"),
    [
        ([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 4.0}], 2, 4),  # 6 would fit on none
        ([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 4.0}], 4, 2),
        ([{"CPU": 8.0}, {"CPU": 2.0}], 3, 2),
        ([{"memory": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], 2, 1),
        ([{"CPU": 32.0}, {"CPU": 8.0, "GPU": 2.0}], 2, 4),  # the GPUs are on the smaller node
    ],
)
def test_a_worker_asks_for_no_more_cores_than_a_node_has(
    ray_cluster, monkeypatch, tmp_path, nodes, workers, cpus
):
    pretend(monkeypatch, *nodes)
    assert scaling(tmp_path, workers).resources_per_worker == {"CPU": cpus}


def test_more_workers_than_gpus_are_refused(two_gpus):
    with pytest.raises(ConfigError, match="workers: 3 is more than the cluster has GPUs; allowed: up to 2"):
        cluster.require_workers(3, None, "sqlite://")
