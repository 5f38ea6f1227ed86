"""The machines that a run has: a cluster's, if one is connected, otherwise this one."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import psutil

from headway.engine.hardware.usage import gpu_names

_ACCELERATOR = "accelerator_type:"


def describe_machines() -> dict[str, str]:
    """Tags that say how many nodes, cores, memory and GPUs there are, and which GPUs.

    For example `{"headway.cluster": "2 nodes, 16 cores, 62.8 GiB", "headway.gpus": "2 x H100"}`.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return _described([node for node in ray.nodes() if node["Alive"]])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _tags(1, cores, psutil.virtual_memory().total, Counter(gpu_names()))


def _described(nodes: list[dict[str, Any]]) -> dict[str, str]:
    gpus: Counter[str] = Counter()
    for node in nodes:
        resources = node["Resources"]
        kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
        if resources.get("GPU"):
            gpus[kinds[0] if kinds else "GPU"] += int(resources["GPU"])

    def total(name: str) -> float:
        return sum(node["Resources"].get(name, 0.0) for node in nodes)

    return _tags(len(nodes), int(total("CPU")), total("memory"), gpus)


def _tags(nodes: int, cores: int, memory: float, gpus: Counter[str]) -> dict[str, str]:
    parts = [_counted(nodes, "node"), _counted(cores, "core"), f"{memory / 2**30:.1f} GiB"]
    said = ", ".join(f"{count} x {name}" for name, count in gpus.items())
    return {"headway.cluster": ", ".join(parts), "headway.gpus": said or "none"}


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
