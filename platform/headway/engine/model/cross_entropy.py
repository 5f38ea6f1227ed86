"""Cross-entropy over a large vocabulary, without a float32 copy of all scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 2**19
"""How many scores are processed at once: those that fit into a core's cache in float32."""


class Term(NamedTuple):
    """One loss of an objective on one batch.

    Attributes:
        total: float32 scalar, the loss summed over its predictions.
        predictions: int64 scalar, how many predictions there are.
        correct: int64 scalar, how many of them are right; 0 while training, since they are not counted then.
    """

    total: Tensor
    predictions: Tensor
    correct: Tensor


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log softmax(logits)[label] over all rows, computed in float32.

    Args:
        logits: floating, shape (predictions, classes).
        labels: int64, shape (predictions,).

    Returns:
        Float32 (float64 for float64 logits), a scalar.
    """
    if logits.device.type == "cpu":
        return _CrossEntropySum.apply(logits, labels)
    return _CrossEntropySumAtOnce.apply(logits, labels)


class _CrossEntropySumAtOnce(torch.autograd.Function):
    """All rows at once, for a GPU, on which hundreds of small kernels would take longer than the arithmetic.

    A compiler makes one kernel of the operations on each score, forward and backward, so that no float32
    score is ever written to memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        normaliser = logits.to(precise).logsumexp(-1)
        ctx.save_for_backward(logits, labels, normaliser)
        return (normaliser - logits.gather(1, labels[:, None])[:, 0]).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels, normaliser = ctx.saved_tensors
        probabilities = (logits.to(normaliser.dtype) - normaliser[:, None]).exp()
        is_label = torch.arange(logits.size(1), device=labels.device) == labels[:, None]
        return ((probabilities - is_label.to(normaliser.dtype)) * gradient).to(logits.dtype), None


class _CrossEntropySum(torch.autograd.Function):
    """Some rows at a time, for a CPU: scores stay in their precision, and few are in float32 at once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        normalisers = [chunk.to(precise).logsumexp(-1) for chunk in _chunks(logits)]
        normaliser = torch.cat(normalisers) if normalisers else logits.new_zeros(0, dtype=precise)
        ctx.save_for_backward(logits, labels, normaliser)
        return (normaliser - logits.gather(1, labels[:, None])[:, 0]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels, normaliser = ctx.saved_tensors
        result = torch.empty_like(logits)
        rows = 0
        for chunk in _chunks(logits):
            here = slice(rows, rows + len(chunk))
            probabilities = (chunk.to(normaliser.dtype) - normaliser[here, None]).exp_()
            probabilities.scatter_add_(1, labels[here, None], probabilities.new_full((len(chunk), 1), -1.0))
            result[here] = probabilities.mul_(gradient)
            rows += len(chunk)
        return result, None


def _chunks(logits: Tensor) -> tuple[Tensor, ...]:
    if not len(logits):
        return ()
    return logits.split(max(1, _CHUNK_ELEMENTS // logits.size(-1)))
