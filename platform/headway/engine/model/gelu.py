"""GELU to be compiled for a GPU, with one exponential and one division for each element.

Phi(x), the normal distribution, is computed within 1e-7 as a polynomial of degree 5 times exp(-x^2 / 2)
(Abramowitz and Stegun 1964, formula 7.1.26). The derivative needs the same exponential. A general `erf` takes
twice as many operations, which would take longer than reading and writing the numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gelu(values: Tensor) -> Tensor:
    """x * Phi(x) (Hendrycks and Gimpel 2016), computed in float32 and returned in the dtype of `values`."""
    return _Gelu.apply(values)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        exact = values.float()
        return (exact * _distribution(exact)[0]).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        exact = values.float()
        below, exponential = _distribution(exact)
        slope = below + exact * exponential * 0.3989422804014327
        return (gradient.float() * slope).to(values.dtype)


def _distribution(values: Tensor) -> tuple[Tensor, Tensor]:
    """Phi of each value, and exp(-value^2 / 2)."""
    # These numbers are literals, since a compiler treats a module's variables as inputs.
    exponential = torch.exp(values * values * -0.5)
    part = 1.0 / (1.0 + 0.23164189 * values.abs())
    polynomial = (1.061405429 * part - 1.453152027) * part + 1.421413741
    polynomial = ((polynomial * part - 0.284496736) * part + 0.254829592) * part
    tail = 0.5 * polynomial * exponential  # of the side that is farther from 0
    return torch.where(values >= 0.0, 1.0 - tail, tail), exponential
