"""Inference with weights in 8 or 4 bits, which become floats where they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.formats.packed import Packed, pack
from headway.engine.inference.products import Product
from headway.engine.model.unpadded import encoder_layers


class PackedProduct:
    """A `Product` whose weight is packed; what it computes it computes in `dtype`."""

    def __init__(self, product: Product, bits: int, dtype: torch.dtype) -> None:
        self._packed = pack(product.weight, bits)
        self._bias = None if product.bias is None else product.bias.detach().to(dtype)
        self._scales = self._packed.scales[:, 0].to(dtype) if bits == 8 else None

    @property
    def weight(self) -> Tensor:
        """The weight in floats, unpacked at each call: float32, (outputs, inputs)."""
        return self._packed.unpacked(torch.float32)

    def __call__(self, hidden: Tensor) -> Tensor:
        """The product, shape (tokens, width)."""
        if self._scales is None:
            return F.linear(hidden, self._packed.unpacked(hidden.dtype), self._bias)
        # To scale few results is faster than to scale all weights.
        products = F.linear(hidden, self._packed.codes.to(hidden.dtype)) * self._scales
        return products if self._bias is None else products + self._bias

    def activated(self, hidden: Tensor, activation: Any) -> Tensor:
        """An activation of the product."""
        return activation(self(hidden))

    def added(self, hidden: Tensor, other: Tensor) -> Tensor:
        """The product plus a tensor of its shape."""
        return self(hidden) + other


class PackedEmbedding(nn.Module):
    """A table of vectors whose rows are unpacked when they are looked up."""

    def __init__(self, weight: Tensor, bits: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings = len(weight)
        self._packed: Packed = pack(weight, bits)
        self._dtype = dtype

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows, shape (…, columns)."""
        rows = self._packed.rows(input_ids.flatten()).unpacked(self._dtype)
        return rows.unflatten(0, input_ids.shape)


def packed_layers(layers: Sequence[Any], bits: int, dtype: torch.dtype) -> list[Any]:
    """Fused layers whose products are packed."""
    return [layer.replaced(lambda product: PackedProduct(product, bits, dtype)) for layer in layers]


def drop_floats(model: Any, bits: int, dtype: torch.dtype) -> None:
    """Free, in place, the floats of all matrices that other layers multiply instead, and pack the words'.

    A table of words that a head multiplies too stays as it is.
    """
    for module in encoder_layers(model).modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.new_empty(0)
    if model.get_output_embeddings() is None:
        model.set_input_embeddings(PackedEmbedding(model.get_input_embeddings().weight, bits, dtype))
