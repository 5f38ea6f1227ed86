"""The step `quantize`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from transformers import AutoModelForSequenceClassification

import headway
from headway.config.base import ConfigError
from headway.config.compression.quantize import QuantizeConfig
from headway.inference.golden import disagreement, store_golden
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer
from headway.steps.quantize import run_quantize
from headway.tracking import tracking_uri


@pytest.fixture
def config(classifier, labelled_file) -> QuantizeConfig:
    settings = {"model": str(classifier), "texts": {"source": str(labelled_file)}, "samples": 50}
    return QuantizeConfig.model_validate(settings | {"min_cosine": 0.9, "min_speedup": 0.0})


def test_a_classifier_in_int8_answers_as_before_and_its_weights_stay(
    config, classifier, texts, make_context, runs
):
    context = make_context("quantize", runs)
    result = run_quantize(config, context)
    folder = context.folder / "model"
    assert result.output == str(folder)
    assert result.summary["texts"] == 50
    assert result.summary["cosine"] > 0.99
    assert result.summary["same_class"] >= 0.96

    before = AutoModelForSequenceClassification.from_pretrained(classifier).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all((before[name] == after[name]).all() for name in before)
    assert not (classifier / "int8.json").exists()

    pack = Pack.of([piece.sequence for piece in TextTokenizer(folder, 48).pieces(texts)])
    models = EncoderModel(classifier, "fp32"), EncoderModel(folder), EncoderModel(folder, "int8")
    exact, chosen, integers = (np.stack(model.run(Operation("classify"), pack)) for model in models)
    # A server takes the integers without being told to.
    assert np.array_equal(chosen, integers)
    assert not np.array_equal(chosen, exact)
    assert np.abs(integers - exact).max() < 0.15

    [run] = MlflowClient(tracking_uri(runs)).search_runs(
        [MlflowClient(tracking_uri(runs)).get_experiment_by_name(context.experiment).experiment_id],
        "attributes.run_name = 'quantize'",
        max_results=1,
    )
    assert run.data.metrics["cosine"] == pytest.approx(result.summary["cosine"])


def test_what_float_answered_is_close_enough_for_a_server_to_take_the_integers(config, make_context, runs):
    folder = Path(run_quantize(config, make_context("quantize-golden", runs)).output)
    store_golden(folder, ["rates rose again at the bank", "a late goal won the match"])
    assert disagreement(EncoderModel(folder), str(folder)) is None


def test_quantize_in_python(classifier, labelled_file, runs):
    gates = {"min_cosine": 0.9, "min_speedup": 0.0}
    folder = headway.quantize(classifier, labelled_file, samples=20, **gates, runs=runs, quiet=True)
    assert (folder / "int8.json").is_file()


def test_integers_that_are_not_faster_are_not_kept(config, make_context, runs):
    context = make_context("quantize-slow", runs)
    result = run_quantize(config.model_copy(update={"min_speedup": 1e6}), context)
    assert not (context.folder / "model" / "int8.json").exists()
    assert "min_speedup is 1e+06: layers keep multiplying floats" in result.headline
    EncoderModel(context.folder / "model")


@pytest.mark.parametrize("products", [None, "int8"])
def test_weights_are_packed_and_the_result_says_how_small(products, config, classifier, make_context, runs):
    context = make_context(f"quantize-packed-{products}", runs)
    wanted = {"weights": "int8", "quantize": products, "min_speedup": 1e6}
    result = run_quantize(config.model_copy(update=wanted), context)
    folder = context.folder / "model"
    assert result.summary["cosine"] > 0.99
    assert result.summary["packed_bytes"] < 0.6 * result.summary["bytes"]
    assert result.headline.startswith("int8 with int8 weights: " if products else "int8 weights: ")
    assert (folder / "int8.json").exists() == (products is not None)
    assert list((classifier).glob("*.safetensors")) == [classifier / "model.safetensors"]
    with pytest.raises(ConfigError, match=r"^weights: those of .* are packed already$"):
        run_quantize(
            config.model_copy(update=wanted | {"model": str(folder)}), make_context("quantize-again", runs)
        )


def test_settings_that_change_nothing_are_refused(config):
    with pytest.raises(ValueError, match="quantize null with weights 'float32' changes nothing"):
        QuantizeConfig.model_validate(config.model_dump() | {"quantize": None})


def test_a_result_that_departs_too_far_is_refused_and_nothing_is_kept(config, make_context, runs):
    context = make_context("quantize-refused", runs)
    strict = config.model_copy(update={"min_cosine": 1.0})
    with pytest.raises(ConfigError, match=r"^min_cosine: 1\.0, but the int8 embeddings of .* mean cosine"):
        run_quantize(strict, context)
    assert list(context.folder.iterdir()) == []


def test_a_source_of_one_text_is_refused(config, tmp_path, make_context, runs):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "The only text that there is in this file."}) + "\n")
    one = config.model_copy(update={"texts": config.texts.model_copy(update={"source": str(path)})})
    with pytest.raises(ConfigError, match=r"has 1 texts; at least 2 are needed$"):
        run_quantize(one, make_context("quantize-one", runs))
