"""The scales by which an encoder's products round their inputs to 8-bit integers, from texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headway.config.base import ConfigError
from headway.engine.inference.encoder import FusedLayer, Product
from headway.engine.inference.int8 import PRODUCTS, Rounding
from headway.inference.packing import Operation, Pack

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

_KEPT_ROWS = 2048
"""Inputs of each product that the error of a scale is measured on."""
_SHARES = [1.0 - 0.05 * place for place in range(19)]
"""Of an input's range to a side of 0: what lies beyond is cut off where finer steps inside are worth it."""
_SMOOTHED = ("projections", "wide")
"""Products whose input has single large columns, made so by the norms before them (Kovaleva et al. 2021,
"BERT Busters"). Measured on MiniLM: the mean cosine to the float embeddings is 0.9936 without smoothing,
0.9966 with it."""
_STRENGTH = 0.6
_LEAST = 1e-5


class _Watched:
    """A product that keeps what it is given.

    Args:
        product: what it is.
        every: one in so many of the rows it is given is kept; of all of them, the columns' extremes.
    """

    def __init__(self, product: Product, every: int) -> None:
        self.product = product
        self._every = every
        self._kept: list[Tensor] = []
        self._least: list[Tensor] = []
        self._greatest: list[Tensor] = []

    def _see(self, hidden: Tensor) -> None:
        self._kept.append(hidden[:: self._every].clone())
        self._least.append(hidden.amin(dim=0))
        self._greatest.append(hidden.amax(dim=0))

    def __call__(self, hidden: Tensor) -> Tensor:
        self._see(hidden)
        return self.product(hidden)

    def activated(self, hidden: Tensor, activation: Any) -> Tensor:
        self._see(hidden)
        return self.product.activated(hidden, activation)

    def added(self, hidden: Tensor, other: Tensor) -> Tensor:
        self._see(hidden)
        return self.product.added(hidden, other)

    def rounding(self, smoothed: bool) -> Rounding:
        """The best for what was seen."""
        least = torch.stack(self._least).amin(dim=0)
        greatest = torch.stack(self._greatest).amax(dim=0)
        smoothing = torch.ones_like(least)
        if smoothed:
            smoothing = _smoothing(torch.maximum(-least, greatest), self.product.weight)
        rows = torch.cat(self._kept) / smoothing
        low = min(float((least / smoothing).min()), 0.0)
        high = max(float((greatest / smoothing).max()), low + _LEAST)
        # One side after the other, the longer first: its end is what makes steps coarse.
        for end in sorted((0, 1), key=lambda end: abs((low, high)[end]), reverse=True):
            ranges = [(low, high * share) if end else (low * share, high) for share in _SHARES]
            low, high = min(ranges, key=lambda found: _error(rows, *found))
        return Rounding(*_scale_of(low, high), smoothing.tolist() if smoothed else [])


def _smoothing(largest: Tensor, weight: Tensor) -> Tensor:
    """How large columns share their size with their weights (Xiao et al. 2023, "SmoothQuant", eq. 4)."""
    weights = weight.detach().abs().amax(dim=0).clamp(min=_LEAST)
    return largest.clamp(min=_LEAST) ** _STRENGTH / weights ** (1.0 - _STRENGTH)


def _scale_of(low: float, high: float) -> tuple[float, int]:
    """The scale and zero point of 256 steps from about `low`, which is at most 0, to `high`."""
    scale = (high - low) / 255
    return scale, min(255, round(-low / scale))


def _error(rows: Tensor, low: float, high: float) -> float:
    """Mean square of what rounding does to some inputs."""
    found = torch.fake_quantize_per_tensor_affine(rows, *_scale_of(low, high), 0, 255)
    return float((found - rows).square().mean())


def calibrate(model: EncoderModel, packs: Sequence[Pack]) -> list[dict[str, Rounding]]:
    """Find how the inputs of each layer's products are best rounded.

    Args:
        model: in float32, on the processor.
        packs: token sequences like those it will be given.

    Raises:
        ConfigError: a kind of encoder whose layers are not BERT's.
    """
    floats = model.trunk.layers
    if floats is None or not all(isinstance(layer, FusedLayer) for layer in floats):
        kind = model.model.config.model_type
        raise ConfigError(
            f"quantize: 'int8' is for encoders with BERT's layers (bert, roberta, …), not {kind!r}"
        )
    every = max(1, sum(len(pack.ids) for pack in packs) // _KEPT_ROWS)
    watched = [layer.replaced(lambda product: _Watched(product, every)) for layer in floats]
    model.trunk.layers = watched
    for pack in packs:
        model.run(Operation("embed"), pack)
    found = [
        {name: getattr(layer, name).rounding(name in _SMOOTHED) for name in PRODUCTS} for layer in watched
    ]
    model.trunk.layers = floats
    return found
