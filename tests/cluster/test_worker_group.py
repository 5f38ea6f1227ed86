"""What training processes are given of a cluster."""

from __future__ import annotations

import time

import pytest

from headway.cluster import worker_group
from headway.cluster.worker_group import WorkerResources, call_resources, gpu_slots, worker_resources
from headway.config.base import ConfigError
from headway.engine.training.health import TrainingError


@pytest.fixture
def two_gpus(pretend_nodes):
    """The cluster as if it had two GPUs and sixteen cores."""
    pretend_nodes({"CPU": 16.0, "GPU": 2.0})


def scaling(tmp_path, workers, share=None):
    return worker_group._trainer(
        lambda worker, launched_at: None, (), workers, tmp_path, time.time(), share
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
def test_a_worker_asks_for_no_more_cores_than_a_node_has(pretend_nodes, tmp_path, nodes, workers, cpus):
    pretend_nodes(*nodes)
    assert scaling(tmp_path, workers).num_cpus_per_worker == cpus


@pytest.mark.parametrize(
    ("nodes", "calls", "resources"),
    [
        ([{"CPU": 1.0}, {"CPU": 1.0}], 1, WorkerResources(1)),  # the cluster's two cores are on no node
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, WorkerResources(4)),
        ([{"CPU": 2.0}], 12, WorkerResources(1)),
        ([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}], 5, WorkerResources(8, 1.0)),  # two at once
        ([{}, {"CPU": 8.0, "GPU": 1.0}], 1, WorkerResources(8, 1.0)),
    ],
)
def test_independent_calls_divide_what_single_nodes_have(pretend_nodes, nodes, calls, resources):
    pretend_nodes(*nodes)
    assert call_resources(calls) == resources


@pytest.mark.parametrize(
    ("gpus", "of_each", "places"), [(2, 1, 2), (3, 2, 1), (1, 0.5, 2), (2, 0.6, 2), (1, 1 / 3, 3)]
)
def test_a_fraction_is_of_one_gpu(gpus, of_each, places):
    assert gpu_slots(gpus, of_each) == places


def test_workers_on_a_fraction_of_a_gpu_meet_without_nccl(two_gpus, tmp_path):
    """NCCL refuses two ranks on one GPU."""
    share = worker_resources(4, 0.5)
    assert share == WorkerResources(cpus=4, gpus=0.5)
    trainer = worker_group._trainer(print, (), 4, tmp_path, time.time(), share)
    assert trainer.scaling_config.resources_per_worker == {"CPU": 4, "GPU": 0.5}
    assert trainer.backend_config.backend == "gloo"


@pytest.mark.parametrize("kind", [ConfigError, TrainingError])
def test_a_failure_that_lasts_is_told_once_at_once(ray_cluster, tmp_path, kind):
    """Though one worker alone fails, and there is progress, which a try more would be granted for."""
    log = tmp_path / "log"

    def fail(log, worker, launched_at):
        with log.open("a") as stream:
            stream.write(f"{worker.rank}\n")
        if worker.rank == 1:
            raise kind("parallel.tensor: the heads do not divide")
        time.sleep(600)  # as in a sum that never comes

    def progress():
        return len(log.read_text()) if log.exists() else 0

    with pytest.raises(kind, match=r"^parallel\.tensor: the heads do not divide$"):
        worker_group.train_on_workers(fail, (log,), 2, tmp_path / "ray", progress)
    assert sorted(log.read_text().split()) == ["0", "1"]
