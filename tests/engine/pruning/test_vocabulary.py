"""Encoders with fewer words, against the whole one."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny_encoders import CONFIGS

from headway.engine.pruning.vocabulary import keep_tokens

KEPT = [0, 2, 3, 5, 8, 13, 21, 34]


def run(model, ids):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([ids]))[0][0]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "modernbert"])
@pytest.mark.parametrize("head", ["Model", "ModelForSequenceClassification", "ModelForMaskedLM"])
def test_a_model_with_fewer_words_computes_the_same_on_those(kind, head, tmp_path):
    torch.manual_seed(0)
    whole = getattr(transformers, f"Auto{head}").from_config(CONFIGS[kind])
    smaller = copy.deepcopy(whole)
    keep_tokens(smaller, KEPT)
    assert smaller.get_input_embeddings().weight.shape[0] == smaller.config.vocab_size == len(KEPT)
    expected = run(whole, [2, 5, 13, 34, 3])
    if head == "ModelForMaskedLM":
        expected = expected[:, KEPT]
    smaller.save_pretrained(tmp_path)
    opened = getattr(transformers, f"Auto{head}").from_pretrained(tmp_path)
    for model in (smaller, opened):
        torch.testing.assert_close(run(model, [1, 3, 5, 7, 2]), expected)


def test_special_tokens_get_their_new_ids():
    config = copy.deepcopy(CONFIGS["bert"])
    config.pad_token_id = 3
    model = transformers.AutoModel.from_config(config)
    keep_tokens(model, KEPT)
    assert model.config.pad_token_id == 2
    assert model.get_input_embeddings().padding_idx == 2
