"""Dropped and frozen layers, and low-rank additions that are merged into plain weights."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig, ModernBertConfig

from headway.config.base import ConfigError
from headway.config.finetune import LoraConfig
from headway.engine.model.lora import (
    add_lora,
    encoder_layers,
    freeze_layers,
    keep_layers,
    merged,
    without_additions,
)

CONFIGS = {
    "bert": BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    ),
    "distilbert": DistilBertConfig(vocab_size=61, dim=32, n_layers=3, n_heads=4, hidden_dim=48),
    "modernbert": ModernBertConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        pad_token_id=0,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIGS[request.param])).eval()


def test_frozen_are_the_embeddings_and_the_lowest_layers_alone(model):
    freeze_layers(model, 2)
    layers = encoder_layers(model)
    assert len(layers) == 3
    frozen = {id(p) for part in [model.base_model.embeddings, *layers[:2]] for p in part.parameters()}
    assert all(parameter.requires_grad == (id(parameter) not in frozen) for parameter in model.parameters())


def test_the_lowest_layers_alone_are_the_model_that_is_saved(model, tmp_path):
    inputs = torch.arange(8)[None]
    states = model(inputs, output_hidden_states=True).hidden_states
    keep_layers(model, 2)
    model.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert len(encoder_layers(opened)) == opened.config.num_hidden_layers == 2
    kept = opened(inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(kept[1], states[1])
    torch.testing.assert_close(opened(inputs).logits, model(inputs).logits)


def test_more_layers_than_there_are_cannot_be_kept(model):
    with pytest.raises(ConfigError, match="layers: 4 is not allowed; the encoder has 3 layers"):
        keep_layers(model, 4)


def test_more_frozen_layers_than_there_are_is_refused(model):
    with pytest.raises(ConfigError, match="frozen_layers: 4 is not allowed; the encoder has 3 layers"):
        freeze_layers(model, 4)


def test_lora_trains_additions_and_the_head_and_starts_as_the_model_was(model):
    ids = torch.arange(5, 17)[None]
    before = model(input_ids=ids).logits
    torch.manual_seed(1)
    add_lora(model, LoraConfig(rank=4))
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or ("encoder" not in name and "layers" not in name) for name in trained)
    assert any("lora_A" in name for name in trained)
    assert any("classifier" in name for name in trained)


@pytest.mark.parametrize("modules", [[], ["dense", "out_lin", "Wo"]])
def test_frozen_layers_get_no_additions(model, modules):
    freeze_layers(model, 2)
    add_lora(model, LoraConfig(rank=4, modules=modules))
    layers = encoder_layers(model)
    added = [any("lora_" in name for name, _ in layer.named_parameters()) for layer in layers]
    assert added == [False, False, True]
    trained = {name for name, parameter in layers[:2].named_parameters() if parameter.requires_grad}
    assert trained == set()


def test_additions_to_no_layer_are_refused(model):
    freeze_layers(model, 3)
    with pytest.raises(ConfigError, match="frozen_layers: 3 leaves lora no layer to adapt"):
        add_lora(model, LoraConfig(rank=4))


def test_without_its_additions_a_model_is_what_it_was_and_has_them_again_after(model):
    names, ids = [name for name, _ in model.named_parameters()], torch.arange(5, 17)[None]
    before = model(input_ids=ids).logits
    add_lora(model, LoraConfig(rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    parameters = list(model.named_parameters())
    trained = [parameter.requires_grad for _, parameter in parameters]
    with without_additions(model.eval()):
        assert [name for name, _ in model.named_parameters()] == names
        assert model(input_ids=ids).logits.equal(before)
    assert all(
        name == other_name and parameter is other
        for (name, parameter), (other_name, other) in zip(model.named_parameters(), parameters, strict=True)
    )
    assert [parameter.requires_grad for _, parameter in parameters] == trained
    assert not model(input_ids=ids).logits.allclose(before)


def test_merged_weights_give_the_same_answers_without_peft(model, tmp_path):
    add_lora(model, LoraConfig(rank=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(5, 17)[None]
    expected = model.eval()(input_ids=ids).logits
    plain = merged(model)
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    # What is trained on stays as it was.
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_unknown_modules_are_named_with_those_there_are():
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"])
    with pytest.raises(
        ConfigError, match=r"lora\.modules: \['q'\] names no linear layer; allowed: dense, key"
    ):
        add_lora(model, LoraConfig(modules=["q"]))
