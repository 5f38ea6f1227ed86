"""Muon: matrices move by orthogonal steps, whose computation is divided among the workers.

Each worker orthogonalises some of the matrices of each shape, in one batch, and then all gather the results.
Otherwise orthogonalising would cost every worker the same, however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from headway.engine.hardware.device import has_fast_bf16
from headway.engine.optimizers.moments import run_adam, zeros_like_each
from headway.engine.parallel.worker import Worker

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MIN_NORM = 1e-7


class Muon(Optimizer):
    """Muon for matrices inside layers, and AdamW for all other weights.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Groups with `use_muon=True`
    contain matrices. They have Nesterov momentum, decoupled weight decay, and steps as large as AdamW's (Liu
    et al. 2025, "Muon is Scalable for LLM Training", section 2.2), so that one learning rate suits all
    weights.

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
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        worker: Worker | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0}
        # `capturable` is torch's word for a step count on the device; it makes loading a state keep it there.
        super().__init__(groups, defaults | {"use_muon": False, "capturable": True})
        self.found_inf: Tensor | None = None
        self._worker = worker or Worker()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all weights that have a gradient; every worker calls it with the same gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices: list[tuple[dict[str, Any], list[Tensor]]] = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights and group["use_muon"]:
                matrices.append((group, weights))
            elif weights:
                run_adam(
                    torch._fused_adamw_,
                    weights,
                    weights,
                    self.state,
                    group,
                    rate=group["lr"],
                    weight_decay=group["weight_decay"],
                    found_inf=self.found_inf,
                )
        self._move_matrices(matrices)
        return loss

    def _move_matrices(self, groups: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        updates = [update for group, weights in groups for update in self._momentum(weights, group)]
        # With found_inf, the updates are zeros and stay zeros.
        updates = orthogonalised(updates, self._worker)
        for group, weights in groups:
            mine, updates = updates[: len(weights)], updates[len(weights) :]
            decay = group["lr"] * group["weight_decay"]
            kept = 1.0 - (decay if self.found_inf is None else decay * (1.0 - self.found_inf))
            torch._foreach_mul_(weights, kept)
            torch._foreach_add_(weights, mine, alpha=-group["lr"])

    def _momentum(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the momentum buffers, and return Nesterov's updates."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        updates = zeros_like_each(weights)
        gradients: list[Any] = [weight.grad for weight in weights]
        torch._fused_sgd_(
            updates,
            gradients,
            [self.state[weight]["momentum_buffer"] for weight in weights],
            lr=-1.0,
            momentum=group["momentum"],
            dampening=0.0,
            weight_decay=0.0,
            nesterov=True,
            maximize=False,
            is_first_step=False,
            grad_scale=None,
            found_inf=self.found_inf,
        )
        return updates


def orthogonalised(matrices: Sequence[Tensor], worker: Worker) -> list[Tensor]:
    """Approximately the nearest orthogonal matrices, scaled to AdamW's steps; each worker computes some.

    Args:
        matrices: float32, shape (rows, columns) each; the same on every worker.
        worker: this process among the workers, all of which call this.

    Returns:
        Float32 matrices of the same shapes, with a root mean square of about 0.2.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    begun = [_begin_batch([matrices[index] for index in indices], worker) for indices in by_shape.values()]
    results: dict[int, Tensor] = {}
    for (shape, indices), (batch, work) in zip(by_shape.items(), begun, strict=True):
        if work is not None:
            work.wait()
        if shape[0] > shape[1]:
            batch = batch.mT  # back to (matrices, rows, columns)
        exact = batch[: len(indices)].to(torch.float32, memory_format=torch.contiguous_format)
        exact.mul_(0.2 * math.sqrt(max(shape)))
        results |= zip(indices, exact.unbind(), strict=True)
    return [results[index] for index in range(len(matrices))]


def _begin_batch(matrices: list[Tensor], worker: Worker) -> tuple[Tensor, dist.Work | None]:
    """Orthogonalise this worker's part of matrices of one shape, and begin to gather all of them.

    Returns:
        In half precision, shape (all matrices or more, shorter side, longer side), and the work to wait for.
    """
    device = matrices[0].device
    size = -(-len(matrices) // worker.world_size)
    mine = matrices[worker.rank * size :][:size]
    batch = torch.zeros(size, *matrices[0].shape, device=device)
    if mine:
        torch._foreach_copy_(list(batch[: len(mine)].unbind()), mine)
    if batch.size(1) > batch.size(2):
        batch = batch.mT.contiguous()  # (matrices, rows, columns) → (matrices, columns, rows)
    # On GPUs without bfloat16, the range of float16 is enough for matrices with a norm of 1.
    is_old = device.type == "cuda" and not has_fast_bf16(device)
    batch = newton_schulz(batch, torch.float16 if is_old else torch.bfloat16)
    if worker.world_size == 1:
        return batch, None
    everywhere = batch.new_empty(worker.world_size * size, *batch.shape[1:])
    return everywhere, dist.all_gather_into_tensor(everywhere, batch, async_op=True)


def newton_schulz(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of each matrix near 1, between 0.7 and 1.2.

    Jordan et al. 2024: x ← a x + b (x xᵀ) x + c (x xᵀ)² x, five times.

    Args:
        matrices: floating, shape (matrices, rows, columns), with rows <= columns; zeros stay zeros.
        dtype: of the products.

    Returns:
        Matrices of that dtype and the same shape.
    """
    linear, cubic, quintic = _COEFFICIENTS
    norms = matrices.norm(dim=(1, 2), keepdim=True)
    matrices = (matrices / norms.clamp_min(_MIN_NORM)).to(dtype)
    for _ in range(_ITERATIONS):
        squares = torch.bmm(matrices, matrices.mT)
        powers = torch.baddbmm(squares, squares, squares, beta=cubic, alpha=quintic)
        matrices = torch.baddbmm(matrices, powers, matrices, beta=linear)
    return matrices
