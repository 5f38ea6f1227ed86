"""Layers with integer products against transformers' own, whose products round the same way in floats."""

import copy

import pytest
import torch
import transformers
from tiny_encoders import CONFIGS, LENGTHS, random_batch
from torch import nn

from headway.engine.inference.encoder import load_for_inference
from headway.engine.inference.int8 import Rounding, weight_levels, write_roundings
from headway.engine.inference.int8_layers import Int8Layer, Int8ModernLayer
from headway.engine.inference.products import PRODUCTS
from headway.engine.model.layout import layout_of_lengths

CPU = torch.device("cpu")
LINEARS = {
    "bert": {
        "projections": ["attention.self.query", "attention.self.key", "attention.self.value"],
        "attended": ["attention.output.dense"],
        "wide": ["intermediate.dense"],
        "narrow": ["output.dense"],
    },
    "distilbert": {
        "projections": ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        "attended": ["attention.out_lin"],
        "wide": ["ffn.lin1"],
        "narrow": ["ffn.lin2"],
    },
    "modernbert": {
        "projections": ["attn.Wqkv"],
        "attended": ["attn.Wo"],
        "wide": ["mlp.Wi"],
        "narrow": ["mlp.Wo"],
    },
}
"""transformers' layers for each product."""


def save(kind, folder):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(copy.deepcopy(CONFIGS[kind])).eval()
    for name, weight in model.named_parameters():
        if name.endswith("weight") and weight.dim() == 2:
            weight.data = torch.randn_like(weight) / 4
    model.save_pretrained(folder)
    return model


def layers_of(model):
    if hasattr(model, "transformer"):
        return model.transformer.layer
    return model.layers if hasattr(model, "layers") else model.encoder.layer


def padded_hidden(model, kind):
    """transformers' hidden states of the same sequences, without padding."""
    *_, padded, types, mask = random_batch(kind)
    arguments = {"token_type_ids": types} if kind == "bert" else {}
    return model(input_ids=padded, attention_mask=mask, **arguments).last_hidden_state[mask]


def rounds_like(linear: nn.Linear, rounding: Rounding) -> None:
    """Let a layer of transformers round its input and weight to the numbers that integers stand for."""
    smoothing = torch.tensor(rounding.smoothing or [1.0])
    weight = linear.weight.detach() * smoothing
    steps = weight.abs().amax(dim=1, keepdim=True) / weight_levels()
    linear.weight.data = (weight / steps).round() * steps

    def rounded(_, inputs):
        scaled = inputs[0] / smoothing
        return torch.fake_quantize_per_tensor_affine(scaled, rounding.scale, rounding.zero_point, 0, 255)

    linear.register_forward_pre_hook(rounded)


@pytest.mark.parametrize("kind", LINEARS)
@torch.inference_mode()
def test_hidden_states_are_transformers_with_rounded_products(kind, tmp_path):
    model = save(kind, tmp_path)
    exact = padded_hidden(model, kind)
    smoothing = (torch.rand(32, generator=torch.Generator().manual_seed(5)) + 0.5).tolist()
    layer_roundings = {
        name: Rounding(0.04, 120, smoothing if name in ("projections", "wide") else []) for name in PRODUCTS
    }
    write_roundings(tmp_path, [layer_roundings] * 2)
    for layer in layers_of(model):
        for name, paths in LINEARS[kind].items():
            for path in paths:
                rounds_like(layer.get_submodule(path), layer_roundings[name])
    expected = padded_hidden(model, kind)

    encoder = load_for_inference(tmp_path, type(model).__name__, "int8", CPU)
    for layer in encoder.layers:
        layer.dtype = torch.float32
    ids, types, *_ = random_batch(kind)
    actual = encoder(ids, types, layout_of_lengths(torch.tensor(LENGTHS)))
    assert actual.dtype == torch.float32
    # A number on the edge between two steps may fall to either side.
    error = (actual - expected).abs().mean()
    assert error < 0.1 * (exact - expected).abs().mean()
    assert error < 2e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_kind_of_encoder_takes_the_integers_once_it_is_quantised(kind, tmp_path):
    architecture = type(save(kind, tmp_path)).__name__
    write_roundings(tmp_path, [dict.fromkeys(PRODUCTS, Rounding(0.03, 128))] * 2)
    encoder = load_for_inference(tmp_path, architecture, "auto", CPU)
    assert all(isinstance(layer, Int8Layer | Int8ModernLayer) for layer in encoder.layers)
