"""Pruned encoders against the whole one, run by transformers with the same units masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_encoders import CONFIGS, LENGTHS, MODELS, build, random_batch
from torch import nn

from headway.config.base import ConfigError
from headway.engine.model.encoder import save_model
from headway.engine.model.layout import layout_of_lengths
from headway.engine.model.lora import keep_layers
from headway.engine.model.unpadded import encode_unpadded, encoder_layers, run_unpadded
from headway.engine.pruning.axes import axes_of
from headway.engine.pruning.cut import Sizes, pruned, sizes_of

KINDS = ["bert", "distilbert", "modernbert"]
KEPT = {
    "hidden": torch.tensor([0, 1, 2, 3, 5, 8, 9, 12, 13, 14, 21, 22, 23, 24, 30, 31]),
    "pooled": torch.tensor([1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 17, 18, 25, 26, 28, 29]),
    "heads.0": torch.tensor([1, 2]),
    "heads.1": torch.tensor([0, 3]),
    "neurons.0": torch.arange(0, 48, 2),
    "neurons.1": torch.arange(24) + 11,
}
OUT = {"bert": "attention.output.dense", "distilbert": "attention.out_lin", "modernbert": "attn.Wo"}
DOWN = {"bert": "output.dense", "distilbert": "ffn.lin2", "modernbert": "mlp.Wo"}
TRANSFORMS = {"head", "pooler", "pre_classifier"}


def arguments_of(kind, padded, types, mask):
    arguments = {"input_ids": padded, "attention_mask": mask.long()}
    return arguments | ({"token_type_ids": types} if kind == "bert" else {})


def zeroed(kept, width, size):
    mask = torch.zeros(size, dtype=torch.float64)
    mask[(kept[:, None] * width + torch.arange(width)).flatten()] = 1.0
    return mask


class NormOfKept(nn.Module):
    """A layer norm over some columns; the others come out as zeros."""

    def __init__(self, norm, kept):
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, hidden):
        bias = None if self.norm.bias is None else self.norm.bias[self.kept]
        part = F.layer_norm(
            hidden[..., self.kept], (len(self.kept),), self.norm.weight[self.kept], bias, self.norm.eps
        )
        return torch.zeros_like(hidden).index_copy(-1, self.kept, part)


def mask_units(model, kind):
    """Switch the dropped units off in transformers' own modules, by multiplying with zeros."""

    def multiply_input(module, mask):
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask, *inputs[1:]))

    for number, layer in enumerate(encoder_layers(model)):
        multiply_input(layer.get_submodule(OUT[kind]), zeroed(KEPT[f"heads.{number}"], 8, 32))
        multiply_input(layer.get_submodule(DOWN[kind]), zeroed(KEPT[f"neurons.{number}"], 1, 48))
    is_tied = model.get_output_embeddings() is not None
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            of_pooled = name.startswith("head.") and not is_tied
            model.set_submodule(name, NormOfKept(module, KEPT["pooled" if of_pooled else "hidden"]))
        # What is added to hidden states has no columns that were dropped.
        elif isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[-1] == 32:
            rows = module.weight.shape[0] if isinstance(module, nn.Linear) else None
            if rows == 32 and not is_tied and name.split(".")[-2:][0] in TRANSFORMS:
                mask = zeroed(KEPT["pooled"], 1, 32)
                module.register_forward_hook(lambda _, __, output, mask=mask: output * mask)
            elif rows is None:
                mask = zeroed(KEPT["hidden"], 1, 32)
                module.register_forward_hook(lambda _, __, output, mask=mask: output * mask)


@pytest.mark.parametrize("head", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_in_plain_transformers_equals_the_masked_original(kind, head, tmp_path):
    model = build(kind, head)
    _, _, padded, types, mask = random_batch(kind)
    smaller = pruned(model, KEPT)
    assert sizes_of(smaller) == Sizes(2, 2, 16, 24)
    smaller.set_attn_implementation("sdpa")
    save_model(smaller, tmp_path)

    opened = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path, dtype=torch.float64)
    assert not list(tmp_path.glob("*mask*"))
    assert opened.config.hidden_size == 16
    arguments = arguments_of(kind, padded, types, mask)
    actual = opened.eval()(**arguments)
    model.set_attn_implementation("sdpa")
    mask_units(model, kind)
    expected = model(**arguments)
    for name, value in expected.items():
        wanted = value if head == "SequenceClassification" else value[mask]
        found = actual[name] if head == "SequenceClassification" else actual[name][mask]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=f"{kind} {head} {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_runs_unpadded_as_padded(kind):
    smaller = pruned(build(kind, "SequenceClassification"), KEPT)
    ids, types, padded, padded_types, mask = random_batch(kind)
    hidden = encode_unpadded(smaller.base_model, ids, types, layout_of_lengths(torch.tensor(LENGTHS)))
    smaller.set_attn_implementation("sdpa")
    expected = smaller.base_model(**arguments_of(kind, padded, padded_types, mask)).last_hidden_state[mask]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_layers_give_what_a_model_without_the_others_gives(kind, tmp_path):
    sizes: dict[str, Any] = {"num_hidden_layers": 4}
    if kind == "modernbert":
        sizes["layer_types"] = ["full_attention", "sliding_attention"] * 2
    configuration = type(CONFIGS[kind])(**CONFIGS[kind].to_dict() | sizes)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(configuration, dtype=torch.float64).eval()
    _, _, padded, types, mask = random_batch(kind)
    arguments = arguments_of(kind, padded, types, mask)
    run_unpadded(model)
    layers = list(encoder_layers(model))
    kinds = getattr(configuration, "layer_types", None)

    for dropped in (1, 2):
        # A layer that returns what it is given is one that is not there.
        layers[dropped].forward = lambda hidden_states, *_, **__: hidden_states
    model.set_attn_implementation("sdpa")
    expected = model(**arguments).last_hidden_state[mask]
    for dropped in (1, 2):
        del layers[dropped].forward
    keep_layers(model, [0, 3])
    save_model(model, tmp_path)
    opened = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert opened.config.num_hidden_layers == 2
    if kinds:
        assert opened.config.layer_types == [kinds[0], kinds[3]]
    torch.testing.assert_close(opened(**arguments).last_hidden_state[mask], expected, rtol=1e-6, atol=1e-6)


def test_layers_that_cannot_be_chosen_are_refused():
    with pytest.raises(ConfigError, match=r"^layers: \[0, 2\] is not allowed; the encoder has 2 layers$"):
        keep_layers(build("bert", "MaskedLM"), [0, 2])
    with pytest.raises(ConfigError, match=r"^layers: \[1\] is not allowed; ModernBERT's first layer"):
        keep_layers(build("modernbert", "MaskedLM"), [1])


def test_other_kinds_of_encoder_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^model: 'electra' encoders cannot be pruned; allowed: bert, dis"):
        sizes_of(build("electra", "MaskedLM"))


def test_a_weight_that_is_not_known_is_refused():
    model = build("bert", "MaskedLM")
    model.adapter = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match=r"^model: it has a weight 'adapter\.weight', which is not known"):
        axes_of(model)


def test_more_heads_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"^heads: 5 is not allowed; each layer has 4 heads$"):
        Sizes(2, 4, 32, 48).shrunk(5, None)
    assert Sizes(2, 4, 32, 48).shrunk(3, None) == Sizes(2, 3, 24, 48)
