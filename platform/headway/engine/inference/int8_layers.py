"""Layers of encoders with products of 8-bit integers, for CPUs.

Attention runs in the dtype of queries, keys and values; sums and norms in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headway.engine.inference.fused_layers import FusedLayer, FusedModernLayer, attend_rotated
from headway.engine.inference.int8 import Int8Product, Rounding
from headway.engine.model.attention import attend_projected
from headway.engine.model.layers import Rotation
from headway.engine.model.layout import SequenceLayout


class Int8Layer:
    """A `FusedLayer` with integer products.

    Args:
        layer: with float products.
        roundings: of the products' inputs, by the products' names.
        dtype: of queries, keys and values.
    """

    def __init__(self, layer: FusedLayer, roundings: Mapping[str, Rounding], dtype: torch.dtype) -> None:
        self.heads, self.dtype, self.activation = layer.heads, dtype, layer.activation
        self.projections = _product(layer, "projections", roundings)
        self.attended, self.attended_norm = _product(layer, "attended", roundings), layer.attended_norm
        self.wide = _product(layer, "wide", roundings)
        self.narrow, self.norm = _product(layer, "narrow", roundings), layer.norm

    def __call__(self, hidden: Tensor, layout: SequenceLayout, **_: Any) -> Tensor:
        """The output, float32, shape (tokens, hidden_size); `hidden` is overwritten."""
        projected = self.projections(hidden, self.dtype)
        attended = attend_projected(projected, hidden.size(-1) // self.heads, layout)
        hidden = self.attended_norm(self.attended.added(self.attended.rounded(attended), hidden))
        inner = self.wide.activated(hidden, self.activation, self.narrow)
        return self.norm(self.narrow.added(inner, hidden))


class Int8ModernLayer:
    """A `FusedModernLayer` with integer products; see `Int8Layer` for the arguments.

    Attributes:
        attention_type: which of the encoder's rotations it takes.
    """

    def __init__(
        self, layer: FusedModernLayer, roundings: Mapping[str, Rounding], dtype: torch.dtype
    ) -> None:
        self.attention_type, self.head_dim, self.window = layer.attention_type, layer.head_dim, layer.window
        self.dtype, self.activation = dtype, layer.activation
        self.projections_norm, self.wide_norm = layer.projections_norm, layer.wide_norm
        self.projections = _product(layer, "projections", roundings)
        self.attended = _product(layer, "attended", roundings)
        self.wide = _product(layer, "wide", roundings)
        self.narrow = _product(layer, "narrow", roundings)

    def __call__(self, hidden: Tensor, layout: SequenceLayout, rotation: Rotation, **_: Any) -> Tensor:
        """The output, float32, shape (tokens, hidden_size); `hidden` is overwritten."""
        projected = self.projections(self.projections_norm(hidden), self.dtype)
        attended = attend_rotated(projected, self.head_dim, layout, rotation, self.window)
        hidden = self.attended.added(self.attended.rounded(attended), hidden)
        inner, gate = self.wide(self.wide_norm(hidden)).chunk(2, dim=-1)
        return self.narrow.added(self.narrow.rounded(self.activation(inner) * gate), hidden)


def int8_layer(
    layer: FusedLayer | FusedModernLayer, roundings: Mapping[str, Rounding], dtype: torch.dtype
) -> Int8Layer | Int8ModernLayer:
    """A layer with integer products instead of float ones."""
    if isinstance(layer, FusedModernLayer):
        return Int8ModernLayer(layer, roundings, dtype)
    return Int8Layer(layer, roundings, dtype)


def _product(
    layer: FusedLayer | FusedModernLayer, name: str, roundings: Mapping[str, Rounding]
) -> Int8Product:
    one = getattr(layer, name)
    return Int8Product(one.weight, one.bias, roundings[name])
