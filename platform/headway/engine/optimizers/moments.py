"""Adam's update in one kernel for all weights, for our own optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def zeros_like_each(weights: Sequence[Tensor]) -> list[Tensor]:
    """Zeros with the shapes of `weights`, none of them -0.0, by two kernels for all."""
    zeros = list(torch._foreach_abs(list(weights)))
    torch._foreach_zero_(zeros)
    return zeros


def run_adam(
    kernel: Callable[..., None],
    values: Sequence[Tensor],
    weights: Sequence[Tensor],
    states: Mapping[Any, dict[str, Any]],
    group: Mapping[str, Any],
    *,
    rate: float,
    weight_decay: float = 0.0,
    found_inf: Tensor | None = None,
) -> None:
    """Update the moments of `weights` with their gradients, and add Adam's step to `values`, in place.

    Kingma and Ba 2015, algorithm 1. If `found_inf` is 1, PyTorch's kernel changes neither values nor moments,
    whatever the gradients are.

    Args:
        kernel: `torch._fused_adam_`, or `torch._fused_adamw_` for decoupled weight decay.
        values: what to move: the weights themselves, or zeros.
        weights: with gradients, and the same dtype and device as `values`.
        states: by weight; `step`, `exp_avg` and `exp_avg_sq` are created if they are missing.
        group: with `betas` and `eps`.
        rate: learning rate.
        weight_decay: for the kernel.
        found_inf: float32 scalar on the weights' device.
    """
    for weight in weights:
        if not states[weight]:
            states[weight]["step"] = torch.zeros((), device=weight.device)
            states[weight]["exp_avg"] = torch.zeros_like(weight)
            states[weight]["exp_avg_sq"] = torch.zeros_like(weight)
    steps = [states[weight]["step"] for weight in weights]
    torch._foreach_add_(steps, 1)
    kernel(
        values,
        [weight.grad for weight in weights],
        [states[weight]["exp_avg"] for weight in weights],
        [states[weight]["exp_avg_sq"] for weight in weights],
        [],
        steps,
        lr=rate,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=weight_decay,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=found_inf,
    )
    if found_inf is not None:
        torch._foreach_sub_(steps, [found_inf] * len(steps))
