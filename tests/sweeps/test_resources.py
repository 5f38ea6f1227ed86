"""How a cluster is divided among the trials of a sweep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.cluster.worker_group import WorkerResources
from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.sweep import SweepConfig
from headway.sweeps.resources import TrialResources, follow_cluster, trial_resources

PC = {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 4.0}


def resources(workers=0, trials=16, parallel=None, **sweep) -> TrialResources:
    config = SweepConfig.model_validate({"model": "m", "task": {"source": "s"}, **sweep})
    training = {"model": "m", "task": "t", "workers": workers, "parallel": parallel or {}}
    return trial_resources(config, FinetuneConfig.model_validate(training), trials)


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([PC], {}, TrialResources(8, 0, WorkerResources(1))),
        ([PC], {"trials": 3}, TrialResources(3, 0, WorkerResources(2))),
        ([PC], {"concurrency": 2}, TrialResources(2, 0, WorkerResources(4))),
        ([PC], {"cpus_per_trial": 4}, TrialResources(2, 0, WorkerResources(4))),
        # Both of a trial's workers count.
        ([PC], {"workers": 2}, TrialResources(4, 2, WorkerResources(1))),
        ([PC], {"workers": 2, "cpus_per_trial": 4}, TrialResources(2, 2, WorkerResources(2))),
        # No trial is larger than a node.
        ([{"CPU": 4.0}] * 3, {"concurrency": 2}, TrialResources(2, 0, WorkerResources(4))),
        # A GPU each, where there are any; equal parts of one where trials are more.
        ([GPUS], {}, TrialResources(4, 0, WorkerResources(4, 1.0))),
        ([GPUS], {"workers": 2}, TrialResources(2, 2, WorkerResources(4, 1.0))),
        ([GPUS], {"concurrency": 8}, TrialResources(8, 0, WorkerResources(2, 0.5))),
        ([GPUS], {"gpus_per_trial": 0.5}, TrialResources(8, 0, WorkerResources(2, 0.5))),
        ([GPUS], {"gpus_per_trial": 1.0, "workers": 2}, TrialResources(4, 2, WorkerResources(2, 0.5))),
        ([GPUS], {"gpus_per_trial": 0}, TrialResources(16, 0, WorkerResources(1))),
    ],
)
def test_what_is_left_open_is_shared_out_evenly(pretend_nodes, nodes, settings, expected):
    pretend_nodes(*nodes)
    assert resources(**settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 9}, "workers: 9 a trial is more than the cluster has cores, 8"),
        ({"cpus_per_trial": 9}, "cpus_per_trial: 9 is more than the cluster has, 8"),
        ({"cpus_per_trial": 1, "workers": 2}, "cpus_per_trial: 1 is less than one for each of 2 workers"),
        ({"gpus_per_trial": 3}, "gpus_per_trial: 3 is more than the cluster has, 2"),
        ({"gpus_per_trial": 2}, "gpus_per_trial: 2 is more than one for each process, 1"),
        (
            {"gpus_per_trial": 1, "workers": 2, "parallel": {"shard": 2}},
            "gpus_per_trial: a model split over 2 workers needs a GPU for each",
        ),
    ],
)
def test_a_trial_that_could_never_start_is_refused(pretend_nodes, settings, message):
    pretend_nodes({"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(ConfigError, match=message):
        resources(**settings)


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [(0, [PC], 8), (0, [PC] * 3, 24), (2, [PC] * 3, 12), (0, [GPUS] * 2, 32)],
)
def test_nodes_that_join_a_cluster_later_get_trials(pretend_nodes, workers, nodes, expected, monkeypatch):
    pretend_nodes(PC)
    begun = resources(workers=workers, trials=1000)
    limiter = SimpleNamespace(max_concurrent=begun.concurrency)
    monkeypatch.setattr("headway.sweeps.resources._SECONDS_BETWEEN_LOOKS", 0.0)
    follow = follow_cluster(limiter, begun)
    pretend_nodes(*nodes)
    follow.on_step_begin(0, [])
    assert limiter.max_concurrent == expected
    pretend_nodes({"CPU": 1.0})
    follow.on_step_begin(1, [])
    assert limiter.max_concurrent == begun.concurrency, "some nodes left"
