"""Build schedules of the learning rate by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from headway.config.training import ScheduleConfig


def build_schedule(
    optimizer: Optimizer,
    config: ScheduleConfig,
    total_steps: int,
    waiting_steps: int = 0,
    scales: Sequence[tuple[int, float]] = (),
) -> LambdaLR:
    """Linear warm-up from 0 to the optimizer's rate, then the named decay up to the last step.

    Each of `scales`, (first step, factor) in ascending order, multiplies all of it from its step on.

    Groups that wait for new weights (`split_new_weights`) have a rate of 0 for `waiting_steps`, and the whole
    schedule in the steps after them, since the gradients of a random head would ruin what is below it (Kumar
    et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").
    """

    def factor(step: int, first: int) -> float:
        if step < first:
            return 0.0
        return _scale(scales, step) * shape(step, first)

    def shape(step: int, first: int) -> float:
        step, steps = step - first, total_steps - first
        warmup_steps = round(config.warmup * steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return _decay(config, min(1.0, progress))

    first_steps = [waiting_steps if group.get("waits") else 0 for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, first=first) for first in first_steps])


def _scale(scales: Sequence[tuple[int, float]], step: int) -> float:
    return next((scale for first, scale in reversed(scales) if first <= step), 1.0)


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
