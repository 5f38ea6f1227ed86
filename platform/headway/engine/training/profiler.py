"""Profile training steps: write a trace to look at, and find the costliest operations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Trainer

_WARMUP_STEPS = 2


class TimedOperation(NamedTuple):
    """An operation and its time, without the operations that it called.

    Attributes:
        name: PyTorch's.
        calls: how often it ran.
        milliseconds: of all calls together, on the device used for training.
        fraction: of the time of all operations, from 0 to 1.
    """

    name: str
    calls: int
    milliseconds: float
    fraction: float


def profile_steps(trainer: Trainer, steps: int, trace: Path, limit: int = 10) -> list[TimedOperation]:
    """Train a few steps under the profiler.

    Args:
        trainer: what to profile; these steps train it.
        steps: how many to record, after two for warm-up.
        trace: the file for the timeline, to be opened at https://ui.perfetto.dev or chrome://tracing.
        limit: how many operations to return.

    Returns:
        The costliest operations, costliest first.
    """
    on_gpu = trainer.worker.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    _train(trainer, range(_WARMUP_STEPS))
    with profile(activities=activities) as recorded:
        _train(trainer, range(_WARMUP_STEPS, _WARMUP_STEPS + steps))
    recorded.export_chrome_trace(str(trace))
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [(event, getattr(event, attribute)) for event in recorded.key_averages()]
    total = sum(time for _, time in events) or 1.0
    events.sort(key=lambda pair: -pair[1])
    return [
        TimedOperation(event.key, event.count, time / 1000, time / total) for event, time in events[:limit]
    ]


def _train(trainer: Trainer, steps: range) -> None:
    for step in steps:
        micro_batches = trainer.batches.micro_batches(step, 0, 1, trainer.parts)
        trainer.train_step(step, micro_batches, Meter())
