"""Products of integers against the same computed with numpy, and how they are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from headway.config.base import ConfigError
from headway.engine.inference.encoder import load_for_inference
from headway.engine.inference.int8 import (
    FILE,
    Int8Product,
    Rounding,
    read_roundings,
    weight_levels,
    write_roundings,
)
from headway.engine.inference.products import PRODUCTS

ROUNDING = Rounding(scale=0.031, zero_point=117)


def operands(columns: int = 48, outputs: int = 80):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(37, columns, generator=generator)
    weight = torch.randn(outputs, columns, generator=generator) / 7
    return hidden, weight, torch.randn(outputs, generator=generator)


def integer_product(hidden, weight, bias, rounding: Rounding) -> np.ndarray:
    """What the arithmetic should give, exactly."""
    smoothing = np.asarray(rounding.smoothing or [1.0])
    weight = weight.double().numpy() * smoothing
    steps = np.abs(weight).max(axis=1) / weight_levels()
    integers = np.rint(weight / steps[:, None]).astype(np.int64)
    given = np.rint(hidden.double().numpy() / smoothing / rounding.scale) + rounding.zero_point
    given = np.clip(given, 0, 255).astype(np.int64) - rounding.zero_point
    return (given @ integers.T) * steps * rounding.scale + bias.double().numpy()


@pytest.mark.parametrize("smoothing", [[], np.linspace(0.5, 3.0, 48).tolist()])
@torch.inference_mode()
def test_a_product_is_that_of_the_integers(smoothing):
    hidden, weight, bias = operands()
    rounding = Rounding(ROUNDING.scale, ROUNDING.zero_point, smoothing)
    product = Int8Product(weight, bias, rounding)
    expected = integer_product(hidden, weight, bias, rounding)
    # A number on the edge between two steps may fall to either side.
    np.testing.assert_allclose(product(hidden).numpy(), expected, atol=0.02)
    assert np.abs(product(hidden).numpy() - expected).mean() < 1e-3
    other = torch.randn(37, 80)
    np.testing.assert_allclose(
        product.added(product.rounded(hidden), other.clone()).numpy(), expected + other.numpy(), atol=0.02
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@torch.inference_mode()
def test_an_activation_is_rounded_as_the_following_product_takes_it(activation):
    hidden, weight, bias = operands()
    product = Int8Product(weight, bias, ROUNDING)
    following = Int8Product(weight.T.contiguous(), torch.zeros(48), Rounding(0.02, 9))
    actual = product.activated(hidden, ACT2FN[activation], following)
    exact = ACT2FN[activation](torch.from_numpy(integer_product(hidden, weight, bias, ROUNDING)))
    expected = (exact / 0.02).round().add(9).clamp(0, 255)
    assert actual.dtype == torch.uint8
    distance = (actual.double() - expected).abs()
    assert distance.max() <= 1
    assert distance.mean() < 0.05


@torch.inference_mode()
def test_sums_of_the_largest_integers_do_not_overflow():
    """Whatever the processor adds them in: every weight is at its largest, every input at its."""
    hidden, weight = torch.full((4, 64), 8.0), torch.full((16, 64), 0.5)
    product = Int8Product(weight, torch.zeros(16), Rounding(8.0 / 255, 0))
    torch.testing.assert_close(product(hidden), torch.full((4, 16), 64 * 4.0))


def test_roundings_come_back_as_they_were_stored(tmp_path):
    layer = dict.fromkeys(PRODUCTS, ROUNDING)
    layer["wide"] = Rounding(0.5, 3, [1.5, 0.25])
    write_roundings(tmp_path, [layer, layer])
    assert read_roundings(tmp_path, 2) == [layer, layer]
    with pytest.raises(ConfigError, match=rf"{FILE}' does not hold the scales of 3 layers"):
        read_roundings(tmp_path, 3)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"layers": [{"wide": {"scale": 1}}, {}]}'])
def test_a_damaged_file_of_roundings_is_one_clear_line(content, tmp_path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"does not hold the scales of 2 layers$"):
        read_roundings(tmp_path, 2)


def test_int8_of_a_model_that_was_not_quantised_is_one_clear_line(encoder):
    with pytest.raises(ConfigError, match=r"^precision: 'int8', but .* was not quantised \(no int8.json\)$"):
        load_for_inference(encoder, "BertForPreTraining", "int8", torch.device("cpu"))
