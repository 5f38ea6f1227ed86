"""Build optimizers by name: those of libraries, and our own if a library's would wait for the GPU."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adafactor, AdamW, Optimizer

from headway.config.training import OptimizerConfig
from headway.engine.optimizers.lamb import Lamb
from headway.engine.optimizers.muon import Muon
from headway.engine.optimizers.parameter_groups import (
    parameter_groups,
    split_hidden_matrices,
    split_new_weights,
    with_layerwise_lr_decay,
)
from headway.engine.parallel.worker import Worker


def build_optimizer(model: nn.Module, config: OptimizerConfig, worker: Worker | None = None) -> Optimizer:
    """The named optimizer for the model's trainable parameters, without decay of biases and norms.

    Args:
        model: the model to train.
        config: which optimizer, and its settings.
        worker: this process among the workers, if there are several.
    """
    rate, betas, eps = config.learning_rate, config.betas, config.eps
    groups = split_new_weights(model, parameter_groups(model, config.weight_decay))
    if config.layerwise_lr_decay < 1.0:
        groups = with_layerwise_lr_decay(model, groups, config.learning_rate, config.layerwise_lr_decay)
    match config.name:
        case "adafactor":
            return Adafactor(groups, lr=rate)
        case "adamw":
            return _adamw(groups, config)
        case "lamb":
            for group in groups:
                group["adapt"] = all(parameter.dim() >= 2 for parameter in group["params"])
            return Lamb(groups, lr=rate, betas=betas, eps=eps)
        case "muon":
            hidden = split_hidden_matrices(model, groups)
            return Muon(hidden, lr=rate, betas=betas, eps=eps, worker=worker)
        case _:
            return _from_library(groups, config)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    # One kernel for all weights, unless they are split over different meshes.
    is_split = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    return AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=not is_split,
        foreach=False if is_split else None,
    )


def _from_library(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    # Imported only if needed, since the library takes a second to load.
    from pytorch_optimizer import Lion, ScheduleFreeAdamW

    rate, betas, eps = config.learning_rate, config.betas, config.eps
    if config.name == "lion":
        return Lion(groups, lr=rate, betas=betas)
    return ScheduleFreeAdamW(groups, lr=rate, betas=betas, eps=eps)


def use_result_weights(optimizer: Any) -> None:
    """Give the model the weights to evaluate and to keep, which differ only for schedule-free optimizers.

    In Defazio et al. 2024, "The Road Less Scheduled", section 2, gradients are taken at y, and the result is
    x.
    """
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def use_training_weights(optimizer: Any) -> None:
    """Give the model the weights to train on; undoes `use_result_weights`."""
    if hasattr(optimizer, "train"):
        optimizer.train()
