"""Gradients scaled down to a largest norm, however the model is split over workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headway.engine.parallel.worker import Worker

_MIN_NORM = 1e-6
"""Added to a norm before dividing by it, as in PyTorch."""


def clip_gradients(
    module: nn.Module, max_norm: float, worker: Worker | None = None, borrowed: Sequence[nn.Parameter] = ()
) -> Tensor:
    """Scale all gradients, in place, so that their norm is at most `max_norm`, however the model is split.

    Args:
        module: this worker's part of the model.
        max_norm: the largest norm that is left alone.
        worker: this process among the workers, if the model is split.
        borrowed: weights that another stage of a pipeline has too, and counts.

    Returns:
        The Euclidean norm of all gradients before scaling, a float32 scalar on their device.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    if worker is None or worker.mesh is None:
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        if not gradients:  # all is frozen
            return torch.zeros((), device=worker.device if worker is not None else None)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return _scaled_down(gradients, norm, max_norm)
    elsewhere = {id(parameter) for parameter in borrowed}
    squares = torch.zeros((), device=worker.device)
    parts = []
    for parameter in parameters:
        part, copies = _part_of_gradient(parameter, worker)
        parts.append(part)
        if id(parameter) not in elsewhere:
            squares += part.float().square().sum() / copies
    dist.all_reduce(squares)
    return _scaled_down(parts, squares.sqrt(), max_norm)


def _scaled_down(gradients: list[Any], norm: Tensor, max_norm: float) -> Tensor:
    """`norm`, after scaling the gradients, in place, so that theirs is at most `max_norm`."""
    if gradients:  # a stage may have frozen layers only
        torch._foreach_mul_(gradients, (max_norm / (norm + _MIN_NORM)).clamp(max=1.0))
    return norm


def _part_of_gradient(parameter: nn.Parameter, worker: Worker) -> tuple[Tensor, int]:
    """This worker's part of a gradient, and how many workers have the same part."""
    copies = worker.world_size // worker.stages
    gradient = parameter.grad
    if not isinstance(gradient, DTensor):
        assert gradient is not None
        return gradient, copies
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
        if not placement.is_replicate():
            copies //= size
    return gradient.to_local(), copies
