"""The step `prune`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import headway
from encoder_folders import random_pack
from headway.config.base import ConfigError
from headway.config.compression.prune import PruneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.corpus.vocabulary import most_used_tokens
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer
from headway.steps.prune import run_prune
from headway.tracking import tracking_uri

HALF = {"heads": 1, "neurons": 64}


@pytest.fixture(scope="module")
def task(labelled_file):
    return {"source": str(labelled_file), "max_length": 48}


@pytest.fixture(scope="module")
def pruned(classifier, task, runs):
    """A classifier with one of two heads, and so half the width, and half the neurons."""
    return headway.prune(classifier, task, **HALF, runs=runs, quiet=True)


def test_a_pruned_classifier_is_a_smaller_one_of_plain_transformers(pruned, classifier):
    model = AutoModelForSequenceClassification.from_pretrained(pruned)
    config = model.config
    assert (config.num_attention_heads, config.hidden_size, config.intermediate_size) == (1, 16, 64)
    assert config.id2label == AutoModelForSequenceClassification.from_pretrained(classifier).config.id2label
    assert AutoTokenizer.from_pretrained(pruned).model_max_length == 48
    encoded = AutoTokenizer.from_pretrained(pruned)(["The cook boils the soup."], return_tensors="pt")
    assert model(**encoded).logits.shape == (1, 3)


def test_recovery_training_brings_a_pruned_classifier_back(classifier, task, runs, make_context):
    context = make_context("prune", runs)
    config = validate(PruneConfig, {"model": str(classifier), "task": task} | HALF)
    result = run_prune(config, context)
    summary = result.summary
    assert summary["validation_accuracy"] > 0.9
    assert summary["pruned_validation_loss"] > summary["validation_loss"]
    assert summary["sizes"] == {"layers": 2, "heads": 2, "hidden": 32, "neurons": 128}
    assert summary["pruned_sizes"] == {"layers": 2, "heads": 1, "hidden": 16, "neurons": 64}
    assert "heads 2 → 1, hidden 32 → 16, neurons 128 → 64" in result.headline
    recovered = headway.finetune(
        model=result.output, task=task, epochs=10, batch_size=16, learning_rate=3e-3, runs=runs, quiet=True
    )
    assert recovered.metrics["validation_loss"] < 0.7 * summary["pruned_validation_loss"]
    assert recovered.metrics["validation_accuracy"] >= summary["pruned_validation_accuracy"]
    client = MlflowClient(tracking_uri(runs))
    experiment = client.get_experiment_by_name(context.experiment).experiment_id
    [run] = client.search_runs([experiment], "attributes.run_name = 'prune'", max_results=1)
    assert run.data.metrics["pruned_weights"] == summary["pruned_weights"] < summary["weights"]


@pytest.fixture
def with_dead_neurons(classifier, tmp_path):
    """The classifier with half of its neurons off for any text, though their weights are the largest."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[::2] *= 10.0
            layer.intermediate.dense.bias[::2] = -1e4
            layer.output.dense.weight[:, ::2] *= 10.0
    model.save_pretrained(tmp_path / "dead")
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "dead")
    return tmp_path / "dead"


def test_importance_keeps_neurons_that_do_something_and_magnitude_large_ones(
    with_dead_neurons, task, runs, make_context
):
    def summary(by, **more):
        settings = {"model": str(with_dead_neurons), "neurons": 64, "by": by} | more
        folder = run_prune(validate(PruneConfig, settings), make_context(f"by-{by}", runs)).output
        again = validate(PruneConfig, {"model": folder, "task": task, "neurons": 64})
        return run_prune(again, make_context(f"loss-{by}", runs)).summary

    whole = validate(PruneConfig, {"model": str(with_dead_neurons), "task": task, "neurons": 64})
    before = run_prune(whole, make_context("dead", runs)).summary["validation_loss"]
    assert summary("importance", task=task)["validation_loss"] == pytest.approx(before, rel=0.02)
    assert summary("magnitude")["validation_loss"] > 1.5 * before


def test_a_pruned_model_is_served_like_any_other(pruned):
    pack = random_pack([7, 12, 3])
    [first, *_] = EncoderModel(pruned, "fp32").run(Operation("classify"), pack)
    expected = AutoModelForSequenceClassification.from_pretrained(pruned).eval()
    ids = torch.from_numpy(pack.ids[:7].astype(np.int64))[None]
    with torch.inference_mode():
        wanted = expected(input_ids=ids).logits.softmax(-1)[0]
    np.testing.assert_allclose(first, wanted, atol=1e-5)


def test_named_layers_of_a_pretrained_encoder_stay_with_its_head_for_words(encoder, runs):
    folder = headway.prune(encoder, layers=[1], runs=runs, quiet=True)
    whole = AutoModelForMaskedLM.from_pretrained(encoder).bert
    left = AutoModelForMaskedLM.from_pretrained(folder)
    assert left.config.num_hidden_layers == 1
    for name, weight in left.bert.encoder.layer[0].state_dict().items():
        assert torch.equal(weight, whole.encoder.layer[1].state_dict()[name])


def test_a_pruned_embedder_is_a_sentence_transformer_of_its_new_width(encoder, pairs, runs, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"anchor": text[:60], "positive": text[60:]} for text, _ in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "embeddings", "source": str(path), "max_length": 48}
    trained = headway.finetune(model=encoder, task=task, steps=2, runs=runs, quiet=True)
    folder = headway.prune(trained, task, heads=1, runs=runs, quiet=True)
    texts = [text for text, _ in pairs[:4]]
    vectors = SentenceTransformer(str(folder)).encode(texts)
    assert vectors.shape == (4, 16)
    pack = Pack.of([piece.sequence for piece in TextTokenizer(folder, 48).pieces(texts)])
    served = np.stack(EncoderModel(folder, "fp32").run(Operation("embed"), pack))
    np.testing.assert_allclose(served, vectors, atol=1e-4)


def test_a_classifier_without_unused_words_is_as_good_as_before(classifier, task, texts, runs, make_context):
    used = len(most_used_tokens(load_tokenizer(classifier), texts))
    settings = {"model": str(classifier), "task": task, "vocabulary": used}
    result = run_prune(validate(PruneConfig, settings), make_context("words", runs))
    summary = result.summary
    assert summary["pruned_validation_loss"] == pytest.approx(summary["validation_loss"], abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(result.output)
    assert len(tokenizer) == used < len(AutoTokenizer.from_pretrained(classifier))
    assert tokenizer.model_max_length == 48
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    whole = AutoModelForSequenceClassification.from_pretrained(classifier)
    text = "The old farmer waters the rose at dawn."
    with torch.inference_mode():
        now = model(**tokenizer(text, return_tensors="pt")).logits
        before = whole(**AutoTokenizer.from_pretrained(classifier)(text, return_tensors="pt")).logits
    torch.testing.assert_close(now, before, atol=1e-5, rtol=1e-5)
    # Rows are read with the new words by whatever trains it further.
    again = headway.finetune(model=result.output, task=task, steps=1, runs=runs, quiet=True)
    assert again.metrics["validation_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give layers, heads, neurons or vocabulary: what should stay of the model"),
        ({"heads": 1}, "by importance needs task, whose rows it is measured on; magnitude does not"),
        ({"vocabulary": 50}, "vocabulary needs task, whose texts say which tokens are used"),
        ({"layers": [1, 0]}, r"layers \[1, 0\] should be increasing numbers, each once"),
        ({"layers": [0], "task": "folder"}, "task does nothing for layers"),
        ({"heads": 1, "by": "magnitude", "task": "folder"}, "task does nothing for layers None by magnitude"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(PruneConfig, {"model": "m"} | settings)


def test_what_the_model_cannot_give_is_refused_before_anything_is_written(
    classifier, encoder, task, make_context, runs
):
    context = make_context("prune-refused", runs)

    def refused(message, **settings):
        with pytest.raises(ConfigError, match=message):
            run_prune(validate(PruneConfig, settings), context)
        assert not list(context.folder.iterdir())

    few = {"model": str(classifier), "by": "magnitude"}
    refused(r"^heads: 3 is not allowed; each layer has 2 heads$", **few, heads=3)
    refused(r"^layers: \[0, 5\] is not allowed; the encoder has 2 layers$", **few | {"layers": [0, 5]})
    refused("has no head for classification with the task", model=str(encoder), task=task, heads=1)
