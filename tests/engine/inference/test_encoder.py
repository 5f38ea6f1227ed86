"""The encoder as served against transformers' own padded forward, for every kind that is supported."""

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, DistilBertConfig, ElectraConfig, ModernBertConfig, RobertaConfig
from transformers.activations import ACT2FN

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.engine.inference.encoder import load_for_inference
from headway.engine.inference.products import Product
from headway.engine.model.layout import layout_of_lengths

LENGTHS = [5, 23, 3, 12, 23, 8]
_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
MODELS = {
    "BertModel": BertConfig(**_SIZES),
    "RobertaModel": RobertaConfig(**_SIZES, pad_token_id=1, type_vocab_size=1),
    "ElectraModel": ElectraConfig(**_SIZES, embedding_size=16),
    "DistilBertModel": DistilBertConfig(
        vocab_size=61, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
    ),
    "ModernBertModel": ModernBertConfig(
        **_SIZES,
        local_attention=8,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    ),
}


def save(architecture: str, folder: Path):
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(MODELS[architecture]).eval()
    model.save_pretrained(folder)
    return model


def random_batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 61, (sum(LENGTHS),), generator=generator)
    types = torch.cat([(torch.arange(n) >= n // 2).long() for n in LENGTHS])
    return ids, types


def padded_hidden(model, ids, types):
    """transformers' hidden states of the same sequences, one by one."""
    rows = []
    for one, kinds in zip(ids.split(LENGTHS), types.split(LENGTHS), strict=True):
        arguments = {"input_ids": one[None]}
        if model.config.model_type in ("bert", "electra"):
            arguments["token_type_ids"] = kinds[None]
        rows.append(model(**arguments).last_hidden_state[0])
    return torch.cat(rows)


@pytest.mark.parametrize("architecture", MODELS)
@torch.inference_mode()
def test_hidden_states_are_transformers(architecture, tmp_path):
    model = save(architecture, tmp_path)
    ids, types = random_batch()
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    expected = padded_hidden(model, ids, types)
    tolerances: dict[Precision, float] = {"fp32": 2e-5, "bf16": 0.15}
    for precision, tolerance in tolerances.items():
        encoder = load_for_inference(tmp_path, architecture, precision, torch.device("cpu"))
        actual = encoder(ids, types, layout)
        assert actual.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        torch.testing.assert_close(actual.float(), expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("architecture", MODELS)
@torch.inference_mode()
def test_attention_weights_are_transformers(architecture, tmp_path):
    model = save(architecture, tmp_path)
    model.set_attn_implementation("eager")
    ids, _ = random_batch()
    ids, types = ids[:9], torch.zeros(9, dtype=torch.long)
    encoder = load_for_inference(tmp_path, architecture, "fp32", torch.device("cpu"))
    layout = layout_of_lengths(torch.tensor([9]))
    before = encoder(ids, types, layout)
    weights = encoder.attention_weights(ids, types)
    expected = torch.cat(model(input_ids=ids[None], output_attentions=True).attentions)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
    torch.testing.assert_close(encoder(ids, types, layout), before)


def test_fused_weights_are_held_once(tmp_path):
    save("BertModel", tmp_path)
    encoder = load_for_inference(tmp_path, "BertModel", "bf16", torch.device("cpu"))
    for layer, fused in zip(encoder.model.encoder.layer, encoder.layers or [], strict=True):
        shared = fused.projections.weight.untyped_storage().data_ptr()
        assert layer.attention.self.key.weight.untyped_storage().data_ptr() == shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
@torch.inference_mode()
def test_products_with_what_follows_them_are_those_of_float32(dtype, kind):
    activation = ACT2FN[kind]
    torch.manual_seed(3)
    hidden, other = torch.randn(37, 48).to(dtype), torch.randn(37, 80).to(dtype)
    weight, bias = (torch.randn(80, 48) / 7).to(dtype), torch.randn(80).to(dtype)
    product = Product(weight, bias)
    exact = torch.nn.functional.linear(hidden.float(), weight.float(), bias.float())
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (0.02, 0.02)
    close = partial(torch.testing.assert_close, rtol=rtol, atol=atol)
    close(product(hidden).float(), exact)
    close(product.activated(hidden, activation).float(), activation(exact))
    close(product.added(hidden, other).float(), exact + other.float())


def test_pickled_weights_are_never_loaded(tmp_path):
    model = save("BertModel", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_for_inference(tmp_path, "BertModel", "fp32", torch.device("cpu"))


def test_an_unknown_class_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="'NoSuchModel', which transformers does not know"):
        load_for_inference(tmp_path, "NoSuchModel", "fp32", torch.device("cpu"))


def test_fp16_is_refused_on_a_cpu(tmp_path):
    save("BertModel", tmp_path)
    with pytest.raises(ConfigError, match="precision: 'fp16' is for GPUs; use 'bf16' or 'fp32' here"):
        load_for_inference(tmp_path, "BertModel", "fp16", torch.device("cpu"))
