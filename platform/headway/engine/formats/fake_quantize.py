"""Training with numbers rounded as they will be: what a model loses by it, it learns to do without.

Weights stay floats, and the optimizer moves these. Forward they are rounded; backward the rounding is taken
for the identity (Bengio et al. 2013, "straight-through estimator").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.config.base import ConfigError
from headway.engine.formats.packed import FEWEST, pack

Rounded = Literal["int8", "int4"]
"""int8: inputs and weights of the layers' products; int4: all matrices that are packed in 4 bits."""


def round_in_training(model: nn.Module, layers: Iterable[nn.Module], kind: Rounded) -> None:
    """Change a model's modules in place to round what they compute with; names of weights stay.

    Args:
        model: with plain linear layers and embeddings.
        layers: the model's encoder layers.
        kind: what is rounded.

    Raises:
        ConfigError: there is nothing to round.
    """
    if kind == "int8":
        changed = sum(_replace(layer, {nn.Linear: _Int8Linear}) for layer in layers)
    else:
        changed = _replace(model, {nn.Linear: _Int4Linear, nn.Embedding: _Int4Embedding})
    if not changed:
        raise ConfigError(f"quantize_aware: {kind!r} rounds nothing in this model")


def _replace(root: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> int:
    """Give modules of some classes other ones, which must have the same attributes; returns how many."""
    known: list[Any] = [part for part in root.modules() if type(part) in classes]
    packed = [part for part in known if min(part.weight.shape) >= FEWEST]
    for part in packed:
        part.__class__ = classes[type(part)]
    return len(packed)


def straight_through(weight: Tensor, bits: int) -> Tensor:
    """A matrix as it is once it is packed; its gradient is that of the matrix itself."""
    return weight + (pack(weight, bits).unpacked(weight.dtype) - weight).detach()


def rounded_inputs(inputs: Tensor) -> Tensor:
    """Inputs of a product in 256 steps from their lowest number to their highest, 0 among them."""
    exact = inputs.float()
    low, high = exact.detach().amin().clamp(max=0.0), exact.detach().amax().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    zero_point = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(exact, scale, zero_point, 0, 255).to(inputs.dtype)


class _Int8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(rounded_inputs(input), straight_through(self.weight, 8), self.bias)


class _Int4Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, straight_through(self.weight, 4), self.bias)


class _Int4Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        # A group of 4-bit numbers lies within a row, so the rows that are looked up are enough.
        rows = super().forward(input)
        return straight_through(rows.flatten(0, -2), 4).view_as(rows)
