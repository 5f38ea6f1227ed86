"""Build schedules of the learning rate by name."""

from __future__ import annotations

import math
import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from headway.config.training import ScheduleConfig


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0 to the optimizer's rate, then the named decay up to the last step."""
    warmup_steps = round(config.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return _decay(config, min(1.0, progress))

    return LambdaLR(optimizer, factor)


def skip_to(schedule: LambdaLR, step: int) -> None:
    """Set the learning rates to those after `step` steps, which an earlier process took."""
    if step == 0:
        return
    schedule.last_epoch = step - 1
    with warnings.catch_warnings():
        # torch expects these steps to have been taken in this process.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        schedule.step()


def _decay(config: ScheduleConfig, progress: float) -> float:
    """The fraction of the peak rate after a fraction `progress` of the steps after warm-up."""
    match config.name:
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "polynomial":
            return (1.0 - progress) ** config.power
        case "wsd":
            # Hu et al. 2024, "MiniCPM", section 4.2: stable, then decaying over the last steps.
            return min(1.0, (1.0 - progress) / config.decay)
        case _:
            return 1.0
