"""LAMB, in a few kernels for all weights, which can skip a step without waiting for the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from headway.engine.optimizers.moments import run_adam, zeros_like_each


class Lamb(Optimizer):
    """LAMB of You et al. 2019, "Large Batch Optimization for Deep Learning", algorithm 2, with phi(z) = z.

    A weight moves by Adam's step plus decay, scaled by the trust ratio ||weight|| / ||step + decay||. Groups
    with `adapt=False`, for biases and norms, move by Adam's step without the trust ratio.

    Attributes:
        found_inf: float32 scalar on the weights' device; if it is 1, weights and moments stay as they are, as
            `torch.amp.GradScaler` and `StepHealth` expect. The host never reads it.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        # `capturable` is torch's word for a step count on the device; it makes loading a state keep it there.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "capturable": True}
        super().__init__(groups, defaults | {"adapt": True})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        # Adam's step is added to zeros; with found_inf they stay zeros.
        updates = zeros_like_each(weights)
        run_adam(torch._fused_adam_, updates, weights, self.state, group, rate=-1.0, found_inf=self.found_inf)
        if decay:
            torch._foreach_add_(updates, weights, alpha=decay)
        if group["adapt"]:
            ratios = _trust_ratios(weights, updates)
            if self.found_inf is not None:
                ratios = ratios * (1.0 - self.found_inf)
            torch._foreach_addcmul_(weights, updates, list(ratios.unbind()), value=-rate)
        else:
            if self.found_inf is not None:
                torch._foreach_mul_(updates, 1.0 - self.found_inf)
            torch._foreach_add_(weights, updates, alpha=-rate)


def _trust_ratios(weights: list[Tensor], updates: list[Tensor]) -> Tensor:
    """||weight|| / ||update|| of each weight, or 1 if either is 0; float32, shape (weights,)."""
    of_weights = torch.stack(torch._foreach_norm(weights))
    of_updates = torch.stack(torch._foreach_norm(updates))
    is_defined = (of_weights > 0) & (of_updates > 0)
    return torch.where(is_defined, of_weights / of_updates, 1.0)
