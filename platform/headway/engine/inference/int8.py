"""Products of 8-bit integers, for CPUs.

A weight has a scale for each of its outputs, computed from its numbers. A product's input has a single scale,
measured beforehand on texts (`headway.compress.quantize`). A scale for each row would need a pass over the
row, which would cost most of what int8 saves.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.activations import GELUActivation

from headway.config.base import ConfigError
from headway.data.atomic import write_atomically
from headway.engine.inference.products import PRODUCTS

FILE = "int8.json"


@dataclass(frozen=True)
class Rounding:
    """How a product's input is rounded to unsigned 8-bit integers: `input / smoothing / scale + zero_point`.

    Attributes:
        scale: the size of one step.
        zero_point: the integer that represents 0.
        smoothing: factors by which input columns are divided and their weights multiplied (Xiao et al. 2023,
            "SmoothQuant"); empty for none.
    """

    scale: float
    zero_point: int
    smoothing: list[float] = field(default_factory=list)


def has_int8_products() -> bool:
    """Whether torch is built with oneDNN's integer products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def weight_levels() -> int:
    """The largest integer for a weight.

    CPUs without VNNI add two products in 16 bits, up to 32,767, into which two times 255 x 64 just fits.
    """
    return 127 if torch.cpu._is_vnni_supported() else 64


def write_roundings(folder: Path, layers: list[dict[str, Rounding]]) -> None:
    """Save how the inputs of a model's products are rounded, in the model's folder."""
    content = {"layers": [{name: asdict(one) for name, one in layer.items()} for layer in layers]}
    write_atomically(folder / FILE, json.dumps(content))


def read_roundings(folder: Path, layers: int) -> list[dict[str, Rounding]]:
    """Read what `write_roundings` saved for a number of layers.

    Raises:
        ConfigError: the model was not quantised, or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"precision: 'int8', but {str(folder)!r} was not quantised (no {FILE})")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["layers"]
        roundings = [{name: Rounding(**layer[name]) for name in PRODUCTS} for layer in stored]
    except (ValueError, KeyError, TypeError):
        roundings = []
    if len(roundings) != layers:
        raise ConfigError(f"model: {str(path)!r} does not hold the scales of {layers} layers")
    return roundings


class Int8Product:
    """`input @ weight.T + bias` in integers.

    Args:
        weight: float, shape (outputs, inputs).
        bias: float, shape (outputs,), or None.
        rounding: of the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rounding: Rounding) -> None:
        smoothing = torch.tensor(rounding.smoothing or [1.0])
        weight = weight.detach().float() * smoothing
        self.scale, self.zero_point = rounding.scale, rounding.zero_point
        self._steps = (smoothing * rounding.scale).reciprocal()
        # With the added half, truncation rounds to the nearest integer.
        self._offset = torch.tensor(rounding.zero_point + 0.5)
        levels = weight_levels()
        self._weight_scale = weight.abs().amax(dim=1).clamp(min=1e-12) / levels
        integers = (weight / self._weight_scale[:, None]).round().clamp(-levels, levels).to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self._weight_zero_point = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = None if bias is None else bias.detach().float()

    def rounded(self, hidden: Tensor) -> Tensor:
        """A float input, (tokens, inputs), as uint8."""
        return torch.addcmul(self._offset, hidden.float(), self._steps).clamp_(0, 255).to(torch.uint8)

    def __call__(self, hidden: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The product with a float input, shape (tokens, outputs)."""
        return self._multiplied(hidden, 1.0, 0, dtype, "none")

    def activated(self, hidden: Tensor, activation: Any, following: Int8Product) -> Tensor:
        """An activation of the product, rounded as input of the following product."""
        if isinstance(activation, GELUActivation):
            return self._multiplied(hidden, following.scale, following.zero_point, torch.uint8, "gelu")
        return following.rounded(activation(self(hidden)))

    def _multiplied(
        self, hidden: Tensor, scale: float, zero_point: int, dtype: torch.dtype, activation: str
    ) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            self.rounded(hidden),
            self.scale,
            self.zero_point,
            self._packed,
            self._weight_scale,
            self._weight_zero_point,
            self._bias,
            scale,
            zero_point,
            dtype,
            activation,
            [],
            "none" if activation == "gelu" else "",
        )

    def added(self, rounded: Tensor, other: Tensor) -> Tensor:
        """The product with a rounded input plus a float32 tensor of its shape, which is overwritten."""
        return torch.ops.onednn.qlinear_pointwise.binary(
            rounded,
            self.scale,
            self.zero_point,
            self._packed,
            self._weight_scale,
            self._weight_zero_point,
            other,
            self._bias,
            1.0,
            0,
            torch.float32,
            1.0,
            0,
            "sum",
            1.0,
            "none",
            [],
            "",
        )
