"""Answers without a server, of every head, against transformers' own padded forward."""

import numpy as np
import pytest
import torch

from encoder_folders import save_bert
from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.predictor import Predictor

TEXTS = [
    "The sailor steers the old boat before noon.",
    "A baker slices fresh bread every morning, and every evening she sweeps the floor of her bakery.",
    "Quiet!",
]
LABELS = ["kitchen", "harbour", "garden"]
CPU = torch.device("cpu")


@pytest.fixture
def made(tmp_path):
    """Saves a tiny BERT with a head; returns its predictor, and transformers' outputs for texts."""

    def make(architecture, labels=LABELS, **settings):
        tokenizer = train_tokenizer(TEXTS * 5, vocab_size=400, lowercase=True, max_length=32)
        shape = {"max_position_embeddings": 32, "initializer_range": 0.5}
        model = save_bert(tmp_path, tokenizer, architecture, labels, **shape | settings)

        @torch.inference_mode()
        def outputs(*texts):
            return model(
                **tokenizer(*texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
            )

        return Predictor(tmp_path, precision="fp32", device=CPU), outputs, tokenizer

    return make


def test_a_class_comes_with_its_probability(made):
    predictor, outputs, _ = made("BertForSequenceClassification")
    best = outputs(TEXTS).logits.softmax(-1).max(-1)
    rows = predictor.rows(TEXTS)
    assert [row["label"] for row in rows] == [LABELS[i] for i in best.indices]
    assert [row["score"] for row in rows] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_several_labels_are_each_likely_or_not(made):
    predictor, outputs, _ = made("BertForSequenceClassification", problem_type="multi_label_classification")
    found = outputs(TEXTS).logits.sigmoid()
    assert {int(n) for n in (found > 0.5).sum(1)} != {1}  # a softmax would give one each
    for row, probabilities in zip(predictor.rows(TEXTS), found.tolist(), strict=True):
        assert row["scores"] == pytest.approx(dict(zip(LABELS, probabilities, strict=True)), abs=1e-5)
        assert row["labels"] == [label for label, p in zip(LABELS, probabilities, strict=True) if p > 0.5]


def test_a_regression_gives_its_number_as_it_is(made):
    predictor, outputs, _ = made(
        "BertForSequenceClassification", labels=["LABEL_0"], problem_type="regression"
    )
    expected = outputs(TEXTS).logits[:, 0].tolist()
    assert max(expected) - min(expected) > 0.01  # a softmax would make each 1
    assert predictor.rows(TEXTS) == [{"score": pytest.approx(score, abs=1e-5)} for score in expected]


def test_words_are_labelled(made):
    predictor, outputs, tokenizer = made("BertForTokenClassification", labels=["O", "B-PER", "I-PER"])
    (row,) = predictor.rows(TEXTS[:1])
    encoding = tokenizer(TEXTS[0], return_offsets_mapping=True)
    labels = outputs(TEXTS[:1]).logits[0].argmax(-1).tolist()
    firsts = {word: i for i, word in reversed(list(enumerate(encoding.word_ids()))) if word is not None}
    inside = {encoding["offset_mapping"][i][0] for i in firsts.values() if labels[i]}
    for entity in row["entities"]:
        assert TEXTS[0][entity["start"] : entity["end"]] == entity["text"] and entity["label"] == "PER"
    covered = [range(entity["start"], entity["end"]) for entity in row["entities"]]
    assert inside == {
        encoding["offset_mapping"][i][0]
        for i in firsts.values()
        if any(encoding["offset_mapping"][i][0] in part for part in covered)
    }


def test_hidden_words_are_found_and_a_text_without_one_is_told(made):
    predictor, outputs, tokenizer = made("BertForMaskedLM")
    text = "The sailor steers the [MASK] boat."
    (row,) = predictor.rows([text])
    place = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)
    best = outputs([text]).logits[0, place].softmax(-1).topk(5)
    assert [one["token"] for one in row["masks"][0]] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
    assert [one["score"] for one in row["masks"][0]] == pytest.approx(best.values.tolist(), abs=1e-5)
    with pytest.raises(ConfigError, match=r"text 2 has no \[MASK\]"):
        predictor.rows([text, TEXTS[0]])


def test_questions_are_answered_from_the_text_and_must_be_given(made):
    predictor, _, _ = made("BertForQuestionAnswering")
    for text, row in zip(TEXTS[:2], predictor.rows(TEXTS[:2], ["Who?"] * 2), strict=True):
        (answer,) = row["answers"]
        assert text[answer["start"] : answer["end"]] == answer["text"] != ""
    with pytest.raises(ConfigError, match="give a question"):
        predictor.rows(TEXTS)


def test_an_encoder_without_a_head_gives_its_vectors_and_no_labels(made):
    predictor, outputs, tokenizer = made("BertModel")
    mask = tokenizer(TEXTS, padding=True, return_tensors="pt")["attention_mask"]
    sums = (outputs(TEXTS).last_hidden_state * mask[..., None]).sum(1)
    rows = predictor.rows(TEXTS)
    assert [list(row) for row in rows] == [["embedding"]] * 3
    np.testing.assert_allclose(
        np.stack([row["embedding"] for row in rows]),
        torch.nn.functional.normalize(sums, dim=-1).numpy(),
        atol=1e-5,
    )
    assert predictor.rows([]) == []
