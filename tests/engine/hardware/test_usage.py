"""How much of a machine is in use; NVML is replaced by one that knows two GPUs."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from headway.engine.hardware.usage import Usage, gpu_names


class NoDriverError(Exception):
    pass


@pytest.fixture
def two_gpus(monkeypatch):
    """NVML's functions, by which GPU 1 tells no power."""

    def power(gpu: int) -> int:
        if gpu == 1:
            raise NoDriverError
        return 350_000

    nvml = SimpleNamespace(
        NVMLError=NoDriverError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=int,
        nvmlDeviceGetHandleByUUID=lambda name: {"GPU-one": 1}[name],
        nvmlDeviceGetName=lambda gpu: f"NVIDIA {gpu}",
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=2e9 * (gpu + 1), total=8e9),
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=40 + gpu),
        nvmlDeviceGetPowerUsage=power,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml


def test_cores_and_memory_are_those_of_process_and_machine():
    usage = Usage()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    found = usage.measure()
    assert found["process_cores"] > 0
    assert found["process_memory_megabytes"] == pytest.approx(
        psutil.Process().memory_info().rss / 1e6, rel=0.1
    )
    memory = psutil.virtual_memory()
    assert found["system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, rel=0.2)
    assert 0 < found["system_memory_usage_percentage"] < 100
    assert 0 <= found["cpu_utilization_percentage"] <= 100


def test_a_gpu_tells_memory_utilization_and_power(two_gpus):
    found = Usage([0]).measure()
    assert {name: value for name, value in found.items() if name.startswith("gpu_")} == {
        "gpu_0_memory_usage_megabytes": 2000.0,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_utilization_percentage": 40,
        "gpu_0_power_usage_watts": 350.0,
    }


def test_what_a_gpu_does_not_tell_is_left_out(two_gpus):
    found = Usage([1]).measure()
    assert found["gpu_1_utilization_percentage"] == 41
    assert "gpu_1_power_usage_watts" not in found


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA 1"]),
        ("GPU-one", ["NVIDIA 1"]),
        ("1,0", ["NVIDIA 1", "NVIDIA 0"]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_visible_gpus_count(visible, names, two_gpus, monkeypatch):
    def by_index(index: int) -> int:
        if index < 0:
            raise NoDriverError
        return index

    two_gpus.nvmlDeviceGetHandleByIndex = by_index
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names() == names


def test_without_a_driver_there_is_no_gpu(two_gpus):
    def refuse() -> None:
        raise NoDriverError

    two_gpus.nvmlInit = refuse
    assert gpu_names() == []
    assert not any(name.startswith("gpu") for name in Usage([0]).measure())
