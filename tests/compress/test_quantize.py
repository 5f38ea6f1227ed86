"""Scales for int8, from the inputs of a model's products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder_folders import random_pack, save_encoder
from headway.compress.quantize import _Observed, calibrate
from headway.engine.inference.int8 import Int8Product, write_roundings
from headway.engine.inference.products import PRODUCTS, Product
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer


def packs_of(folder, texts) -> list[Pack]:
    pieces = TextTokenizer(folder, 32).pieces(texts)
    return [Pack.of([piece.sequence for piece in pieces[i : i + 20]]) for i in (0, 20, 40)]


def test_every_product_of_every_layer_has_a_scale_and_the_model_is_as_before(encoder, texts):
    model = EncoderModel(encoder, "fp32")
    packs = packs_of(encoder, texts)
    before = list(model.trunk.layers or [])
    roundings = calibrate(model, packs)
    assert model.trunk.layers == before
    assert [sorted(layer) for layer in roundings] == [sorted(PRODUCTS)] * 2
    for layer in roundings:
        assert all(one.scale > 0 and 0 <= one.zero_point <= 255 for one in layer.values())
        # What GELU gives is never below -0.17, and few steps lie there.
        assert layer["narrow"].zero_point * layer["narrow"].scale < 0.18
        assert [len(layer[name].smoothing) for name in PRODUCTS] == [32, 0, 32, 0]


@torch.inference_mode()
def test_smoothing_takes_a_large_column_out_of_the_way_of_the_others():
    torch.manual_seed(0)
    hidden, weight = torch.randn(500, 32), torch.randn(16, 32)
    hidden[:, 7] *= 60
    watched = _Observed(Product(weight, torch.zeros(16)), every=1)
    exact = watched(hidden)

    def error(smoothed: bool) -> float:
        product = Int8Product(weight, torch.zeros(16), watched.rounding(smoothed))
        return float((product(hidden) - exact).norm() / exact.norm())

    assert error(smoothed=True) < 0.4 * error(smoothed=False)


@torch.inference_mode()
def test_one_far_value_in_many_is_cut_off_rather_than_all_steps_made_coarse():
    torch.manual_seed(0)
    hidden = torch.randn(20_000, 8)
    hidden[0, 0] = 30.0
    watched = _Observed(Product(torch.eye(8), torch.zeros(8)), every=1)
    watched(hidden)
    rounding = watched.rounding(smoothed=False)
    top = (255 - rounding.zero_point) * rounding.scale
    assert 3.0 < top < 25.0
    # Within the steps nothing is further off than half of one.
    inside = hidden.abs().amax(dim=1) < 3.0
    rounded = Int8Product(torch.eye(8), torch.zeros(8), rounding).rounded(hidden[inside]).numpy()
    values = (rounded.astype(np.int64) - rounding.zero_point) * rounding.scale
    assert np.abs(values - hidden[inside].numpy()).max() <= rounding.scale * 0.51


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_a_quantised_encoder_is_served_in_integers_and_close_on_texts_that_set_no_scales(kind, tmp_path):
    folder = save_encoder(tmp_path, kind, "embed")
    lengths = [5, 23, 3, 12, 23, 8]
    exact = EncoderModel(folder, "fp32")
    write_roundings(folder, calibrate(exact, [random_pack(lengths, seed) for seed in range(8)]))
    served, integers = EncoderModel(folder), EncoderModel(folder, "int8")
    cosines = []
    for seed in range(100, 104):
        expected, chosen, rounded = (
            np.stack(model.run(Operation("embed"), random_pack(lengths, seed)))
            for model in (exact, served, integers)
        )
        assert np.array_equal(chosen, rounded)
        assert not np.array_equal(chosen, expected)
        cosines += (expected * rounded).sum(axis=1).tolist()
    assert np.mean(cosines) > 0.999
    assert min(cosines) > 0.99
