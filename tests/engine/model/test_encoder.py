"""Encoders run unpadded give transformers' own numbers, and transformers reads what is saved."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from encoder_folders import load_classifier
from headway.config.base import ConfigError
from headway.config.pretrain import ModelConfig
from headway.engine.model.encoder import (
    bert_config,
    load_as_saved,
    load_pretraining_model,
    new_pretraining_model,
    save_model,
)
from headway.engine.model.layout import layout_of_lengths
from headway.engine.model.unpadded import encode_unpadded
from waiting import PATIENCE

LENGTHS = [6, 11, 1, 9, 3]


@pytest.fixture(scope="module")
def small_config() -> BertConfig:
    model = ModelConfig(preset="bert-tiny", hidden_size=32, num_attention_heads=4, dropout=0.0)
    return bert_config(model, vocab_size=50, max_length=16, pad_token_id=0)


def plain(config: BertConfig) -> BertConfig:
    """The same shape with transformers' own attention; a configuration is shared with its models."""
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"
    return own


def row_and_padded() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same sequences as one row, and padded as transformers takes them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (sum(LENGTHS),), generator=generator)
    types = torch.randint(0, 2, (sum(LENGTHS),), generator=generator)
    padded = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids.split(LENGTHS), batch_first=True),
        "token_type_ids": torch.nn.utils.rnn.pad_sequence(types.split(LENGTHS), batch_first=True),
    }
    padded["attention_mask"] = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, types, padded


def test_the_unpadded_trunk_equals_transformers_padded_one_forward_and_backward(small_config):
    model = new_pretraining_model(small_config, next_sentence=True, seed=1).double().eval()
    reference = BertModel(plain(small_config)).double().eval()
    reference.load_state_dict(model.base_model.state_dict())
    ids, types, padded = row_and_padded()
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    hidden = encode_unpadded(model.base_model, ids, types, layout)
    pooled = model.base_model.pooler(hidden[layout.first_tokens][:, None])
    expected = reference(**padded)
    real = padded["attention_mask"].bool()
    torch.testing.assert_close(hidden, expected.last_hidden_state[real], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-10, atol=1e-11)
    upstream = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ((hidden * upstream).sum() + pooled.square().sum()).backward()
    ((expected.last_hidden_state[real] * upstream).sum() + expected.pooler_output.square().sum()).backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.base_model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-9, msg=name)


def test_run_padded_the_model_still_gives_transformers_numbers(small_config):
    model = new_pretraining_model(small_config, next_sentence=True, seed=1).double().eval()
    reference = BertForPreTraining(plain(small_config)).double().eval()
    reference.load_state_dict(model.state_dict())
    padded = row_and_padded()[2]
    with torch.inference_mode():
        ours, theirs = model(**padded), reference(**padded)
    real = padded["attention_mask"].bool()
    torch.testing.assert_close(ours.prediction_logits[real], theirs.prediction_logits[real])
    torch.testing.assert_close(ours.seq_relationship_logits, theirs.seq_relationship_logits)


def test_no_sequence_sees_another(small_config):
    encoder = new_pretraining_model(small_config, next_sentence=True, seed=1).double().eval().base_model
    ids, types, _ = row_and_padded()
    layout = layout_of_lengths(torch.tensor(LENGTHS))
    before = encode_unpadded(encoder, ids, types, layout)
    changed = ids.clone()
    changed[LENGTHS[0] : LENGTHS[0] + LENGTHS[1]] = 7
    after = encode_unpadded(encoder, changed, types, layout)
    others = np.r_[0 : LENGTHS[0], sum(LENGTHS[:2]) : sum(LENGTHS)]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-12)
    assert not torch.allclose(after[LENGTHS[0] : sum(LENGTHS[:2])], before[LENGTHS[0] : sum(LENGTHS[:2])])


def test_a_saved_model_needs_no_headway(small_config, tmp_path):
    """Plain transformers, in a process that never imports Headway, gives the same numbers."""
    model = new_pretraining_model(small_config, next_sentence=True, seed=3).eval()
    save_model(model, tmp_path / "model")
    code = f"""
import sys, torch, numpy
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}).eval()
ids = torch.arange(5, 17)[None]
with torch.inference_mode():
    numpy.save({str(tmp_path / "hidden.npy")!r}, model(input_ids=ids).last_hidden_state.numpy())
assert "headway" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE, capture_output=True)
    ids = torch.arange(5, 17)
    layout = layout_of_lengths(torch.tensor([12]))
    with torch.inference_mode():
        hidden = encode_unpadded(model.base_model, ids, torch.zeros_like(ids), layout)
    expected = torch.from_numpy(np.load(tmp_path / "hidden.npy"))[0]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)


def test_a_model_saved_and_loaded_is_the_same(small_config, tmp_path):
    model = new_pretraining_model(small_config, next_sentence=True, seed=3)
    save_model(model, tmp_path)
    loaded = load_pretraining_model(tmp_path, next_sentence=True)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_loaded_model_names_the_weights_that_its_folder_lacked(small_config, tmp_path):
    model = new_pretraining_model(small_config, next_sentence=True, seed=3)
    save_model(model, tmp_path / "whole")
    save_model(model.base_model, tmp_path / "trunk")
    assert load_pretraining_model(tmp_path / "whole", next_sentence=True).new_weights == frozenset()
    trunk = {f"bert.{name}" for name, _ in model.base_model.named_parameters()}
    lacking = load_pretraining_model(tmp_path / "trunk", next_sentence=True)
    assert {name for name, _ in lacking.named_parameters()} - trunk <= lacking.new_weights
    assert not lacking.new_weights & trunk
    classifier = load_classifier(tmp_path / "whole", ["a", "b"], random_weights=False, seed=0)
    assert classifier.new_weights == {"classifier.weight", "classifier.bias"}


def test_the_same_seed_gives_the_same_weights(small_config):
    one, same, other = (new_pretraining_model(small_config, True, seed).state_dict() for seed in (4, 4, 5))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_a_classifier_takes_the_encoders_weights_or_none_of_them(small_config, tmp_path):
    save_model(new_pretraining_model(small_config, next_sentence=True, seed=3), tmp_path)
    saved = BertModel.from_pretrained(tmp_path).state_dict()
    pretrained = load_classifier(tmp_path, ["a", "b", "c"], random_weights=False, seed=0)
    fresh = load_classifier(tmp_path, ["a", "b", "c"], random_weights=True, seed=0)
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(pretrained.base_model.state_dict()[name], saved[name])
    assert not torch.allclose(fresh.base_model.state_dict()[name], saved[name])
    assert pretrained.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert pretrained.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_a_saved_classifier_loads_with_its_labels(small_config, tmp_path):
    save_model(new_pretraining_model(small_config, next_sentence=True, seed=3), tmp_path / "encoder")
    classifier = load_classifier(tmp_path / "encoder", ["a", "b"], random_weights=False, seed=0)
    save_model(classifier, tmp_path / "classifier")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert loaded.config.id2label == {0: "a", 1: "b"}
    assert torch.equal(loaded.classifier.weight, classifier.classifier.weight)


# Turc et al. 2019, table 1: millions of parameters of BERT in each size, with its vocabulary of 30,522.
@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("bert-tiny", 4.4),
        ("bert-mini", 11.3),
        ("bert-small", 29.1),
        ("bert-medium", 41.7),
        ("bert-base", 110.1),
    ],
)
def test_presets_have_their_published_size(preset, millions):
    config = bert_config(ModelConfig(preset=preset), vocab_size=30_522, max_length=512, pad_token_id=0)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in BertModel(config).parameters())
    assert size / 1e6 == pytest.approx(millions, rel=0.02)


def test_positions_reach_as_far_as_the_longest_sequence():
    assert bert_config(ModelConfig(), 100, max_length=128, pad_token_id=0).max_position_embeddings == 512
    assert bert_config(ModelConfig(), 100, max_length=2048, pad_token_id=0).max_position_embeddings == 2048


def test_a_width_that_does_not_split_into_heads_is_refused():
    shape = ModelConfig(preset="bert-tiny", hidden_size=33)
    with pytest.raises(ConfigError, match=r"hidden_size: 33 is not a multiple of num_attention_heads, 2"):
        bert_config(shape, 100, 128, 0)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_classifier(tmp_path, ["a", "b"], random_weights=False, seed=0)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pretraining_model(tmp_path, next_sentence=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_was_stored_in_16_bits_is_trained_in_32(dtype, small_config, tmp_path):
    save_classifier(small_config, tmp_path, dtype)
    for model in (
        load_as_saved(tmp_path),
        load_classifier(tmp_path, ["a", "b"], random_weights=False, seed=0),
    ):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def save_classifier(config: BertConfig, folder: Path, dtype: torch.dtype) -> None:
    BertForSequenceClassification(plain(config)).to(dtype).save_pretrained(folder)
