"""Calibrates int8: finds from texts how an encoder's products should round their inputs to 8-bit integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headway.config.base import ConfigError
from headway.engine.inference.int8 import Rounding
from headway.engine.inference.products import PRODUCTS, Product
from headway.inference.packing import Operation, Pack

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

_KEPT_ROWS = 2048
"""Inputs of each product on which the error of a scale is measured."""
_RANGE_FRACTIONS = [1.0 - 0.05 * step for step in range(19)]
"""Fractions of an input's range, on each side of 0, that are tried. Cutting off what lies beyond makes the
steps inside finer."""
_SMOOTHED = ("projections", "wide")
"""Products whose inputs have a few large columns, which the layer norms before them cause (Kovaleva et al.
2021, "BERT Busters"). Measured on MiniLM: the mean cosine to the float embeddings is 0.9936 without
smoothing, 0.9966 with it."""
_STRENGTH = 0.6
_EPSILON = 1e-5


class _Observed:
    """A product that records its inputs.

    Args:
        product: that is computed.
        every: keep one in so many rows of the input; the extremes of columns are those of all rows.
    """

    def __init__(self, product: Product, every: int) -> None:
        self.product = product
        self._every = every
        self._kept: list[Tensor] = []
        self._minima: list[Tensor] = []
        self._maxima: list[Tensor] = []

    def _record(self, hidden: Tensor) -> None:
        self._kept.append(hidden[:: self._every].clone())
        self._minima.append(hidden.amin(dim=0))
        self._maxima.append(hidden.amax(dim=0))

    def __call__(self, hidden: Tensor) -> Tensor:
        self._record(hidden)
        return self.product(hidden)

    def activated(self, hidden: Tensor, activation: Any) -> Tensor:
        self._record(hidden)
        return self.product.activated(hidden, activation)

    def added(self, hidden: Tensor, other: Tensor) -> Tensor:
        self._record(hidden)
        return self.product.added(hidden, other)

    def rounding(self, smoothed: bool) -> Rounding:
        """The best rounding for the recorded inputs."""
        minimum = torch.stack(self._minima).amin(dim=0)
        maximum = torch.stack(self._maxima).amax(dim=0)
        smoothing = torch.ones_like(minimum)
        if smoothed:
            smoothing = _smoothing(torch.maximum(-minimum, maximum), self.product.weight)
        rows = torch.cat(self._kept) / smoothing
        low = min(float((minimum / smoothing).min()), 0.0)
        high = max(float((maximum / smoothing).max()), low + _EPSILON)
        # The longer side first, since its end makes the steps coarse.
        for end in sorted((0, 1), key=lambda end: abs((low, high)[end]), reverse=True):
            ranges = [
                (low, high * fraction) if end else (low * fraction, high) for fraction in _RANGE_FRACTIONS
            ]
            low, high = min(ranges, key=lambda ends: _error(rows, *ends))
        return Rounding(*_scale_of(low, high), smoothing.tolist() if smoothed else [])


def _smoothing(largest: Tensor, weight: Tensor) -> Tensor:
    """Divisors that move size from large columns to weights (Xiao et al. 2023, "SmoothQuant", eq. 4)."""
    weights = weight.detach().abs().amax(dim=0).clamp(min=_EPSILON)
    return largest.clamp(min=_EPSILON) ** _STRENGTH / weights ** (1.0 - _STRENGTH)


def _scale_of(low: float, high: float) -> tuple[float, int]:
    """The scale and zero point of 256 steps from about `low`, at most 0, to `high`."""
    scale = (high - low) / 255
    return scale, min(255, round(-low / scale))


def _error(rows: Tensor, low: float, high: float) -> float:
    """Mean square of the differences that rounding makes to some inputs."""
    rounded = torch.fake_quantize_per_tensor_affine(rows, *_scale_of(low, high), 0, 255)
    return float((rounded - rows).square().mean())


def calibrate(model: EncoderModel, packs: Sequence[Pack]) -> list[dict[str, Rounding]]:
    """Find how the inputs of each layer's products are best rounded.

    Args:
        model: in float32, on the CPU.
        packs: token sequences like those it will get.

    Returns:
        For each layer, the rounding of each product by its name.

    Raises:
        ConfigError: the model has no layers.
    """
    floats = model.trunk.layers
    if not floats:
        raise ConfigError("model: static embeddings have no layers whose products could be in int8")
    every = max(1, sum(len(pack.ids) for pack in packs) // _KEPT_ROWS)
    observed = [layer.replaced(lambda product: _Observed(product, every)) for layer in floats]
    model.trunk.layers = observed
    for pack in packs:
        model.run(Operation("embed"), pack)
    roundings = [
        {name: getattr(layer, name).rounding(name in _SMOOTHED) for name in PRODUCTS} for layer in observed
    ]
    model.trunk.layers = floats
    return roundings
