"""What training workers are given of a cluster."""

from __future__ import annotations

import time

import pytest
import ray

from headway import cluster
from headway.config import ConfigError


@pytest.fixture
def two_gpus(ray_cluster, monkeypatch):
    """The cluster as if it had two GPUs beside its two cores."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})


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


def test_more_workers_than_gpus_are_refused(two_gpus):
    with pytest.raises(ConfigError, match="workers: 3 is more than the cluster has GPUs; allowed: up to 2"):
        cluster.require_workers(3, None, "sqlite://")
