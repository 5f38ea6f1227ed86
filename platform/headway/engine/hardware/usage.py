"""How much of a machine is in use: cores, memory and GPUs, under MLflow's names for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import psutil


class Usage:
    """Measures a process and its machine; cores are counted from the last call, or the creation, on.

    Args:
        gpus: which of the GPUs that this process may use are measured.
    """

    def __init__(self, gpus: Sequence[int] = ()) -> None:
        self._process = psutil.Process()
        visible = list(_visible_gpus()) if gpus else []
        self._gpus = {index: visible[index] for index in gpus if index < len(visible)}
        self.measure()

    def measure(self) -> dict[str, float]:
        """Name → value now, in percent, MB (10^6 bytes) or W; `process_cores` is how many were busy."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "process_cores": self._process.cpu_percent() / 100,
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        for index, gpu in self._gpus.items():
            found |= {f"gpu_{index}_{name}": value for name, value in _measured(gpu).items()}
        return {name: round(value, 2) for name, value in found.items()}


def gpu_names() -> list[str]:
    """Names of the GPUs that this process may use, such as `NVIDIA H200`; makes no CUDA context."""
    import pynvml

    names = [pynvml.nvmlDeviceGetName(gpu) for gpu in _visible_gpus()]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def _visible_gpus() -> Iterator[Any]:
    """NVML's handles of the GPUs that `CUDA_VISIBLE_DEVICES` leaves; none if there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen is not None else map(str, range(pynvml.nvmlDeviceGetCount()))
    for name in filter(None, map(str.strip, names)):
        with contextlib.suppress(pynvml.NVMLError):
            if name.lstrip("-").isdecimal():
                yield pynvml.nvmlDeviceGetHandleByIndex(int(name))
            else:
                yield pynvml.nvmlDeviceGetHandleByUUID(name)


def _measured(gpu: Any) -> dict[str, float]:
    """What a GPU tells; some do not tell all."""
    import pynvml

    found: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        found["memory_usage_megabytes"] = memory.used / 1e6
        found["memory_usage_percentage"] = memory.used / memory.total * 100
    with contextlib.suppress(pynvml.NVMLError):
        found["utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
    with contextlib.suppress(pynvml.NVMLError):
        found["power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return found
