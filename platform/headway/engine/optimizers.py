"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adafactor, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from headway.config import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The named optimizer over the model's trainable parameters; biases and norms are not decayed."""
    groups = parameter_groups(model, config.weight_decay)
    learning_rate = config.learning_rate
    if config.name == "adafactor":
        return Adafactor(groups, lr=learning_rate)
    if config.name == "adamw":
        return AdamW(groups, lr=learning_rate, betas=config.betas, eps=config.eps, fused=True)
    # Imported only when asked for: the library takes a second to load.
    from pytorch_optimizer import Lamb, Lion

    if config.name == "lion":
        return Lion(groups, lr=learning_rate, betas=config.betas)
    # You et al. 2019, algorithm 2: the decay is part of the update that the trust ratio scales.
    return Lamb(groups, lr=learning_rate, betas=config.betas, eps=config.eps, weight_decouple=False)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices with the decay, vectors (biases, norms) without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0 to the optimizer's rate, then the named course down to the last step."""
    warmup_steps = round(config.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return _decay(config.name, min(1.0, progress))

    return LambdaLR(optimizer, factor)


def _decay(name: str, progress: float) -> float:
    """Share of the peak rate when `progress` (0 to 1) of the steps after warm-up are done."""
    if name == "linear":
        return 1.0 - progress
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
