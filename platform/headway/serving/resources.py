"""What each replica gets of the cluster, and how much it is given to do for it."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.cluster import connect
from headway.cluster.worker_group import gpu_slots
from headway.config.base import ConfigError
from headway.config.serve import ServeConfig

_RAY_UNITS = 10_000
"""Ray counts fractions of a resource in units of so many to one."""


class Load(NamedTuple):
    """Tokens of packs, of the queue, and of waiting work for each replica.

    Measured on an H200, texts of 80 tokens: packs of 65,536 tokens give BERT-base 14% more texts/s than packs
    of 16,384, for which it has CUDA graphs, and take four times as long.
    """

    pack: int
    queue: int
    replica: int


_ON_CPU = Load(4096, 262_144, 8192)
_ON_GPU = Load(16_384, 1_048_576, 32_768)


def load_of(config: ServeConfig, gpus: float) -> Load:
    """The settings, and what fits the device if they are not set."""
    usual = _ON_GPU if gpus else _ON_CPU
    return Load(
        config.max_batch_tokens or usual.pack,
        config.queue_tokens or usual.queue,
        config.target_queued_tokens or usual.replica,
    )


def cores_per_replica(config: ServeConfig) -> int:
    """Cores a replica computes with: those it reserves, or the cluster's, dealt out to the least replicas."""
    if config.replica_cpus:
        return config.replica_cpus
    return max(1, connect.available_cpus() // max(1, config.min_replicas))


def gpus_per_replica(config: ServeConfig) -> float:
    """The GPU, or the fraction of one, that each replica reserves; needs a connected cluster.

    Raises:
        ConfigError: no node has that, with the cores that a replica reserves, or a cluster of one machine has
            no room for the least replicas: they would wait for ever.
    """
    nodes = _nodes()
    if config.replica_gpus is None:
        return _even_share(sum(gpus for _, gpus in nodes), config.min_replicas)
    gpus, cpus = config.replica_gpus, config.replica_cpus
    if not gpus:
        return 0.0
    if not any(found for _, found in nodes):
        raise ConfigError(f"replica_gpus: {gpus:g} is more than any node of the cluster has; allowed: 0")
    if not any(gpu_slots(found, gpus) and cores >= cpus for cores, found in nodes):
        raise ConfigError(f"replica_cpus: no node with a GPU has {cpus} cores; lower it")
    places = sum(gpu_slots(found, gpus) for _, found in nodes)
    if connect.is_local() and places < config.min_replicas:
        raise ConfigError(
            f"replica_gpus: {config.min_replicas} replicas with {gpus:g} of a GPU each do not fit on this "
            f"machine, which has room for {places}"
        )
    return gpus


def _even_share(gpus: float, replicas: int) -> float:
    """A GPU for each replica, or equal fractions if there are too few; rounded down to what Ray counts in."""
    if gpus < 1:
        return 0.0
    on_each = math.ceil(max(1, replicas) / int(gpus))
    return math.floor(_RAY_UNITS / on_each) / _RAY_UNITS


def _nodes() -> list[tuple[float, float]]:
    """Cores and GPUs of each node."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in resources]
