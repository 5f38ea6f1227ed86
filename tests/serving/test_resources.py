"""What replicas get of a cluster: GPUs if there are any, and never what no node has."""

import pytest

from headway.cluster import connect
from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.serving import resources
from headway.serving.resources import (
    cores_per_replica,
    gateway_node,
    gpus_per_replica,
    load_of,
    require_replicas,
)


def config(**settings):
    return ServeConfig(model="x", **settings)


@pytest.mark.parametrize(
    ("gpus", "replicas", "expected"),
    [
        ([], (1, 4), 0.0),
        ([1], (1, 4), 1.0),
        ([1], (0, 4), 1.0),
        ([2, 2], (4, 8), 1.0),
        ([1], (2, 2), 0.5),
        ([1], (6, 6), 0.1666),  # Ray would round a sixth up, and the last replica would not fit
        ([2], (3, 3), 0.5),
    ],
)
def test_each_replica_has_a_gpu_or_an_equal_fraction_of_one(pretend_nodes, gpus, replicas, expected):
    pretend_nodes({"CPU": 2.0}, *({"CPU": 8.0, "GPU": float(count)} for count in gpus))
    assert gpus_per_replica(config(replicas=replicas)) == expected


@pytest.mark.parametrize("asked", [0.0, 0.25, 0.5, 1.0])
def test_what_is_set_is_taken(pretend_nodes, asked):
    pretend_nodes({"CPU": 8.0, "GPU": 1.0})
    assert gpus_per_replica(config(replica_gpus=asked)) == asked


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        ([{"CPU": 8.0}], {"replica_gpus": 0.5}, "replica_gpus: 0.5 is more than any node of the cluster has"),
        (
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}],
            {"replica_gpus": 1, "replica_cpus": 16},
            "replica_cpus: no node with a GPU has 16 cores; lower it",
        ),
        (
            [{"CPU": 8.0, "GPU": 1.0}],
            {"replica_gpus": 0.5, "replicas": (3, 4)},
            "replica_gpus: 3 replicas with 0.5 of a GPU each do not fit on this machine; at most",
        ),
    ],
)
def test_what_no_node_has_is_refused_instead_of_waited_for(
    pretend_nodes, monkeypatch, nodes, settings, message
):
    pretend_nodes(*nodes)
    monkeypatch.setattr(connect, "is_local", lambda: True)
    with pytest.raises(ConfigError) as refused:
        gpus_per_replica(config(**settings))
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_a_cluster_that_can_grow_may_have_too_few_gpus_yet(pretend_nodes, monkeypatch):
    pretend_nodes({"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(connect, "is_local", lambda: False)
    assert gpus_per_replica(config(replica_gpus=1, replicas=(3, 4))) == 1.0


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        (
            [{"CPU": 8.0}],
            {"replica_cpus": 64},
            "1 replica with 64 cores each does not fit on this machine; 0",
        ),
        (
            [{"CPU": 8.0}],
            {"replica_cpus": 3, "replicas": (3, 4)},
            "3 replicas with 3 cores each do not fit on this machine; 2 would",
        ),
        (
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}],
            {"replica_cpus": 9},
            "1 replica with 9 cores and 1 of a GPU each does not fit on this machine; 0 would",
        ),
    ],
)
def test_cores_that_this_machine_has_not_are_refused(pretend_nodes, monkeypatch, nodes, settings, message):
    pretend_nodes(*nodes)
    monkeypatch.setattr(connect, "is_local", lambda: True)
    with pytest.raises(ConfigError) as refused:
        require_replicas(config(**settings))
    assert str(refused.value).startswith(f"replica_cpus: {message}") and "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{}, {"replica_cpus": 4, "replicas": (2, 9)}, {"replica_cpus": 8}])
def test_replicas_that_fit_are_not_asked_about(pretend_nodes, monkeypatch, settings):
    pretend_nodes({"CPU": 8.0})
    monkeypatch.setattr(resources, "can_never_come", lambda bundles: pytest.fail("asked"))
    require_replicas(config(**settings))


@pytest.mark.parametrize("refuses", [True, False])
def test_a_cluster_is_asked_whether_what_it_lacks_can_come(pretend_nodes, monkeypatch, refuses):
    pretend_nodes({"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(connect, "is_local", lambda: False)
    asked: list[list[dict[str, float]]] = []

    def can_never_come(bundles):
        asked.append(bundles)
        return refuses

    monkeypatch.setattr(resources, "can_never_come", can_never_come)
    settings = config(replica_gpus=1, replicas=(2, 4))
    if refuses:
        message = (
            "replica_gpus: 2 replicas with 1 of a GPU each do not fit on the cluster, or on what it can add"
        )
        with pytest.raises(ConfigError, match=f"^{message}; 1 would$"):
            require_replicas(settings)
    else:
        require_replicas(settings)
    assert asked == [[{"GPU": 1.0}] * 2]


def test_packs_are_larger_on_gpus_unless_they_are_set():
    assert load_of(config(), 0.0) == (4096, 262_144, 8192)
    assert load_of(config(), 0.5) == (16_384, 1_048_576, 32_768)
    settings = {"max_batch_tokens": 100, "queue_tokens": 900, "target_queued_tokens": 300}
    assert load_of(config(**settings), 1.0) == (100, 900, 300)


@pytest.mark.parametrize(
    ("nodes", "replicas", "cores"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 8.0}], (1, 4), 8),  # and not 32
        ([{"CPU": 8.0}, {"CPU": 8.0}], (4, 4), 4),
        ([{"CPU": 2.0}], (0, 4), 2),
        ([{"CPU": 32.0}, {"CPU": 8.0, "GPU": 1.0}], (1, 1), 8),
    ],
)
def test_a_replica_computes_with_the_cores_of_one_node(pretend_nodes, nodes, replicas, cores):
    pretend_nodes(*nodes)
    assert cores_per_replica(config(replicas=replicas)) == cores


def test_the_gateway_runs_where_a_load_balancer_points_to_or_where_the_driver_is(ray_cluster, monkeypatch):
    import ray

    [own] = ray.nodes()
    other = own | {"NodeID": "other", "NodeManagerAddress": "10.0.0.2"}
    monkeypatch.setattr(ray, "nodes", lambda: [other, own])
    address, resources = gateway_node()
    assert address == own["NodeManagerAddress"]
    assert list(resources) == [f"node:{address}"]
    other["Resources"] = {"gateway": 1.0}
    assert gateway_node() == ("10.0.0.2", {"gateway": 0.001})


def test_a_request_may_not_have_more_tokens_than_one_client_gets_of_the_queue():
    assert load_of(config(max_request_tokens=131_072), 0.0).queue == 262_144
    message = "max_request_tokens: 451 is more than half of queue_tokens, 450, "
    with pytest.raises(ConfigError, match=message):
        load_of(config(max_request_tokens=451, queue_tokens=900), 0.0)
