"""How many cores and GPUs each replica gets, and how much work for them."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.cluster import connect
from headway.cluster.capacity import can_never_come
from headway.cluster.worker_group import gpu_slots, worker_resources
from headway.config.base import ConfigError
from headway.config.serve import ServeConfig

_RAY_UNITS = 10_000
"""Ray counts resources in units of 1 / 10,000."""
_GATEWAY_RESOURCE = "gateway"
_ANY_NUMBER = 1_000_000


class Load(NamedTuple):
    """How many tokens make a pack, fill the queue, or are worth another replica.

    Measured on an H200 with texts of 80 tokens: BERT-base computes 14% more texts/s in packs of 65,536 tokens
    than in packs of 16,384, for which it has CUDA graphs, but each pack takes four times as long.
    """

    pack: int
    queue: int
    replica: int


_ON_CPU = Load(4096, 262_144, 8192)
_ON_GPU = Load(16_384, 1_048_576, 32_768)


def load_of(config: ServeConfig, gpus: float) -> Load:
    """The settings, or what suits the device if they are not set.

    Raises:
        ConfigError: a request may have more tokens than one client gets of the queue.
    """
    default = _ON_GPU if gpus else _ON_CPU
    half = (config.queue_tokens or default.queue) // 2
    if config.max_request_tokens is not None and config.max_request_tokens > half:
        raise ConfigError(
            f"max_request_tokens: {config.max_request_tokens:,} is more than half of queue_tokens, {half:,}, "
            "which is what one client gets of the queue"
        )
    return Load(
        config.max_batch_tokens or default.pack,
        config.queue_tokens or default.queue,
        config.target_queued_tokens or default.replica,
    )


def cores_per_replica(config: ServeConfig) -> int:
    """Cores of its node that a replica computes with: those it reserves, or its part of the node's."""
    if config.replica_cpus:
        return config.replica_cpus
    return worker_resources(max(1, config.min_replicas), gpus_per_replica(config)).cpus


def gpus_per_replica(config: ServeConfig) -> float:
    """The GPU, or the fraction of one, that each replica reserves; needs a connected cluster.

    Raises:
        ConfigError: no node has that with the cores that a replica reserves, or the minimum of replicas does
            not fit on the one machine there is: they would wait forever.
    """
    nodes = _nodes()
    if config.replica_gpus is None:
        return _even_fraction(sum(gpus for _, gpus in nodes), config.min_replicas)
    gpus, cpus = config.replica_gpus, config.replica_cpus
    if not gpus:
        return 0.0
    if not any(on_node for _, on_node in nodes):
        raise ConfigError(f"replica_gpus: {gpus:g} is more than any node of the cluster has; allowed: 0")
    if not any(gpu_slots(on_node, gpus) and cores >= cpus for cores, on_node in nodes):
        raise ConfigError(f"replica_cpus: no node with a GPU has {cpus} cores; lower it")
    capacity = sum(gpu_slots(on_node, gpus) for _, on_node in nodes)
    if connect.is_local() and capacity < config.min_replicas:
        raise ConfigError(
            f"replica_gpus: {config.min_replicas} replicas with {gpus:g} of a GPU each do not fit on this "
            f"machine; at most {capacity} do"
        )
    return gpus


def require_replicas(config: ServeConfig) -> None:
    """Check that the minimum of replicas, or one, may find nodes with what each reserves.

    Raises:
        ConfigError: they would wait forever: this machine has not as much, or the cluster has not and its
            autoscaler, if it has one, says that it cannot add it.
    """
    gpus, cpus, count = gpus_per_replica(config), config.replica_cpus, max(1, config.min_replicas)
    capacity = sum(_replicas_on(*node, cpus, gpus) for node in _nodes())
    if capacity >= count:
        return
    needs = {name: value for name, value in (("CPU", float(cpus)), ("GPU", gpus)) if value}
    if connect.is_local() or can_never_come([needs] * count):
        where = "on this machine" if connect.is_local() else "on the cluster, or on what it can add"
        each = [f"{cpus} core{'s' if cpus > 1 else ''}"] * bool(cpus) + [f"{gpus:g} of a GPU"] * bool(gpus)
        raise ConfigError(
            f"{'replica_cpus' if cpus else 'replica_gpus'}: {count} replica{'s' if count > 1 else ''} with "
            f"{' and '.join(each)} each {'do' if count > 1 else 'does'} not fit {where}; {capacity} would"
        )


def _replicas_on(cores: float, on_node: float, cpus: int, gpus: float) -> int:
    """How many replicas with so many cores and GPUs fit on a node; without either, any number."""
    limits = [int(cores) // cpus] if cpus else []
    return min([*limits, gpu_slots(on_node, gpus)] if gpus else limits, default=_ANY_NUMBER)


def gateway_node() -> tuple[str, dict[str, float]]:
    """The address of the node that the gateway runs on, and the resource by which Ray places it there.

    It is the node that offers the resource `gateway`, since a load balancer points there, or else the
    driver's, where the port was checked and where `host` is meant.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    offering = [node["NodeManagerAddress"] for node in nodes if _GATEWAY_RESOURCE in node["Resources"]]
    if offering:
        return offering[0], {_GATEWAY_RESOURCE: 0.001}
    own = ray.get_runtime_context().get_node_id()
    [address] = [node["NodeManagerAddress"] for node in nodes if node["NodeID"] == own]
    return address, {f"node:{address}": 0.001}


def _even_fraction(gpus: float, replicas: int) -> float:
    """A GPU for each replica, or an equal fraction if there are too few, rounded down to Ray's unit."""
    if gpus < 1:
        return 0.0
    on_each = math.ceil(max(1, replicas) / int(gpus))
    return math.floor(_RAY_UNITS / on_each) / _RAY_UNITS


def _nodes() -> list[tuple[float, float]]:
    """Cores and GPUs of each node."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]
