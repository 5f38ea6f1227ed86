"""Room for training processes on a cluster that is joined: what is there, and what its autoscaler adds.

A driver cannot read what an autoscaler could add. But of a request that can never be met, the autoscaler says
so within seconds; otherwise the nodes are on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headway.cluster import connect, ray_internals
from headway.config.base import ConfigError

_PATIENCE_SECONDS = 1800.0
"""For nodes that are coming; a cloud that is short of GPUs takes long."""
_ANSWER_SECONDS = 20.0
"""For an autoscaler's answer: it looks every 5 s. Ray's older autoscaler gives none."""
_RETURN_SECONDS = 120.0
"""For a node that died, on a cluster whose nodes others start: KubeRay, or whoever runs `ray start`."""
_LOOK_SECONDS = 1.0

_DIED = (2, 3)
"""Ray's reasons for a node's death that are no wish to have fewer nodes: unexpected, and preempted."""
_HAD_GPUS = "ray.io/accelerator-type"
"""A label that Ray gives to nodes with accelerators; of a dead one it keeps the labels, not the resources."""

Say = Callable[[str], None]
Bundle = dict[str, float]
"""What a process needs of one node, by the resource's name on Ray."""


def require_processes(
    processes: int, address: str | None, tracking_uri: str, say: Say = lambda text: None
) -> None:
    """Connect, and wait until the cluster has nodes for so many training processes, which may come.

    Each process takes a GPU if the cluster has any, or its autoscaler can add any, and else a core.

    Args:
        processes: that train at the same time.
        address: of the cluster, as in `connect.connect`.
        tracking_uri: of MLflow.
        say: told what is waited for.

    Raises:
        ConfigError: the cluster can never have so many, or no cluster answers.
        TimeoutError: it could, but after half an hour it still has not.
    """
    connect.connect(address, tracking_uri)
    gpus = bool(connect.available_gpus())
    if connect.is_local():
        come = _fitting(gpus) >= processes
    else:
        gpus, come = _kind_that_comes(processes, say)
    if not come:
        unit = ("GPUs" if gpus else "cores") + ("" if connect.is_local() else ", or can add")
        raise ConfigError(
            f"workers: {processes} is more than the cluster has {unit}; free now: {_fitting(gpus)}"
        )


def _kind_that_comes(processes: int, say: Say) -> tuple[bool, bool]:
    """Whether each process gets a GPU, and whether there are nodes for all of them, once they have come."""
    if _come(processes, True, say):
        return True, True
    if connect.available_gpus() or (processes > 1 and _can_come(gpus=True)):
        return True, False
    return False, _come(processes, False, say)


def _fitting(gpus: bool) -> int:
    """How many processes fit on the nodes, each with a core and, if `gpus`, a GPU."""
    nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
    cores = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    return sum(min(cpus, found) if gpus else cpus for cpus, found in cores)


def _come(processes: int, gpus: bool, say: Say) -> bool:
    """Whether there are nodes for so many processes, once they have come; False if they cannot."""
    if _fitting(gpus) >= processes:
        return True
    began = time.monotonic()
    with _asked_for(_bundles(processes, gpus)) as is_refused:
        while (fitting := _fitting(gpus)) < processes:
            waited = time.monotonic() - began
            refused = is_refused()
            if refused and not (waited < _RETURN_SECONDS and _has_lost_a_node(gpus)):
                return False
            if refused is None and gpus and not connect.available_gpus() and waited > _ANSWER_SECONDS:
                return False
            who = f"{processes} worker{'s' if processes > 1 else ''}{' with a GPU each' if gpus else ''}"
            what = f"nodes for {who}, {fitting} fit now"
            if (problem := ray_internals.launch_problem()) is not None:
                what += f"; the last one was not started: {problem}"
            if waited > _PATIENCE_SECONDS:
                raise TimeoutError(f"gave up after {waited / 60:.0f} min of waiting for {what}")
            say(f"waiting for {what} ({waited:.0f} s)")
            time.sleep(_LOOK_SECONDS)
    return True


def can_never_come(bundles: Sequence[Bundle]) -> bool:
    """Whether the cluster can never have all of these at once; False if nobody says so.

    Args:
        bundles: what each process needs of one node, such as `{"CPU": 2, "GPU": 0.5}`.
    """
    gpus = any("GPU" in bundle for bundle in bundles)
    return _refusal(bundles) is True and not _has_lost_a_node(gpus)


def _can_come(gpus: bool) -> bool:
    """Whether the autoscaler could add a node for a single process."""
    return _refusal(_bundles(1, gpus)) is False


def _refusal(bundles: Sequence[Bundle]) -> bool | None:
    """Whether the autoscaler refuses nodes for these; None if it does not say in time."""
    began = time.monotonic()
    with _asked_for(bundles) as is_refused:
        while (refused := is_refused()) is None and time.monotonic() - began < _ANSWER_SECONDS:
            time.sleep(_LOOK_SECONDS)
    return refused


def _bundles(processes: int, gpus: bool) -> list[Bundle]:
    return [{"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})] * processes


@contextmanager
def _asked_for(bundles: Sequence[Bundle]) -> Iterator[Callable[[], bool | None]]:
    """Within the block, nodes for all of these are asked for; gives whether they are refused."""
    from ray.autoscaler.sdk import request_resources

    wanted = list(bundles)
    request_resources(bundles=wanted)
    asked_at = ray_internals.cluster_version()

    def is_refused() -> bool | None:
        request_resources(bundles=wanted)  # again: what another job asks for replaces it
        return ray_internals.is_growth_refused(asked_at)

    try:
        yield is_refused
    finally:
        request_resources(bundles=[])  # or nodes that nobody uses would stay


def _has_lost_a_node(gpus: bool) -> bool:
    """Whether a node has died, one that had GPUs if `gpus`, and none has taken its place."""
    nodes = _nodes()
    alive = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    return any(
        node["NodeManagerAddress"] not in alive and (not gpus or _HAD_GPUS in node["Labels"])
        for node in nodes
        if not node["Alive"] and node["DeathReason"] in _DIED
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()
    return nodes
