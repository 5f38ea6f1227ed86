"""Where the time of training steps goes: a trace to look at, and the costliest operations."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Trainer

_WARMUP_STEPS = 2


class TimedOperation(NamedTuple):
    """An operation's own time, without what it called.

    Attributes:
        name: PyTorch's.
        calls: how often it ran.
        milliseconds: all calls together, on the device that training computes on.
        fraction: of all operations' time, 0 to 1.
    """

    name: str
    calls: int
    milliseconds: float
    fraction: float


def profile_steps(trainer: Trainer, steps: int, trace: Path, limit: int = 10) -> list[TimedOperation]:
    """Train a few steps under the profiler.

    Args:
        trainer: what to profile; it is trained on by these steps.
        steps: how many to record, after two that warm up.
        trace: where to write the timeline, for chrome://tracing or https://ui.perfetto.dev.
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
