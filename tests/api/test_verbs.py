"""Headway in Python, as in a notebook: five lines, data in memory, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import BertForPreTraining, BertForSequenceClassification, pipeline

import headway
from headway.config.pretrain import PretrainConfig
from waiting import PATIENCE


def test_pretrain_in_five_lines_on_lists(texts, tiny_shape, runs):
    result = headway.pretrain(
        texts[::2], texts[1::2], epochs=4, learning_rate=3e-3, batch_size=16,
        model=tiny_shape, vocab_size=300, max_length=32, runs=runs, quiet=True,
    )  # fmt: skip
    assert isinstance(result.model, BertForPreTraining)
    assert 0 < result.validation_loss < result.metrics["validation_loss_start"]
    assert result.tokenizer("boat")["input_ids"]
    assert result.model.config.vocab_size == len(result.tokenizer)


def test_pretrain_and_finetune_on_a_dataset(pairs, tiny_shape, runs):
    columns = {"text": [text for text, _ in pairs], "label": [label for _, label in pairs]}
    data = datasets.Dataset.from_dict(columns)
    common: dict[str, Any] = {"runs": runs, "quiet": True, "batch_size": 16, "learning_rate": 3e-3}
    pretrained = headway.pretrain(
        data, model=tiny_shape, steps=150, objective=["mlm"], vocab_size=300, max_length=32, **common
    )
    tuned = headway.finetune(data, model=pretrained, epochs=16, max_length=48, **common)
    assert isinstance(tuned.model, BertForSequenceClassification)
    assert sorted(tuned.model.config.label2id) == ["garden", "harbour", "kitchen"]
    assert tuned.metrics["validation_accuracy"] > 0.6
    assert tuned.validation_loss < tuned.metrics["validation_loss_start"]


def test_finetune_on_pairs_with_validation_data_of_ones_own(pairs, encoder, runs):
    tuned = headway.finetune(
        pairs[::2], pairs[1::2], model=encoder, steps=3, batch_size=8, runs=runs, quiet=True
    )
    classifier = pipeline("text-classification", str(tuned.path))
    answers = classifier([text for text, _ in pairs[1::2]])
    right = [answer["label"] == label for answer, (_, label) in zip(answers, pairs[1::2], strict=True)]
    assert tuned.metrics["validation_accuracy"] == pytest.approx(sum(right) / len(right))


def test_pretraining_goes_on_from_a_model(encoder, corpus, runs):
    result = headway.pretrain(
        corpus=str(corpus.folder), model=encoder, steps=2, batch_size=8, runs=runs, quiet=True
    )
    # It begins where the encoder's own training ended: far below a model that knows nothing.
    fresh = 5.0
    assert result.metrics["validation_loss_start"] < fresh


def test_a_typed_config_may_be_given_whole(corpus, tiny_shape, runs):
    config = PretrainConfig.model_validate(
        {"corpus": str(corpus.folder), "model": tiny_shape, "steps": 1, "batch_size": 4}
    )
    assert headway.pretrain(config=config, runs=runs, quiet=True).metrics["steps"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 1}, "epoch: unknown setting; did you mean 'epochs'"),
        ({"learning_rate": -1}, "optimizer.learning_rate: -1 is not allowed"),
        ({"vocab_size": 3}, "vocab_size: 3 is not allowed"),
        ({"workers": 0, "batch_size": 0}, "batch_size: 0 is not allowed"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(settings, message, texts, tmp_path):
    with pytest.raises(headway.ConfigError, match=message):
        headway.pretrain(texts, runs=tmp_path / "runs", quiet=True, **settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "train_data: holds no text"), ([1], r"train_data\[0\]: int is not a text")],
)
def test_data_without_text_is_refused_before_anything_is_written(data, message, tmp_path):
    with pytest.raises(headway.ConfigError, match=message):
        headway.pretrain(data, runs=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_model_that_is_none_is_refused(pairs, tmp_path):
    with pytest.raises(headway.ConfigError, match="model: '' is not allowed"):
        headway.finetune(pairs, runs=tmp_path, quiet=True)
    with pytest.raises(headway.ConfigError, match="is not a folder with a transformers model"):
        headway.finetune(pairs, model=tmp_path, runs=tmp_path, quiet=True)


def test_without_workers_ray_is_not_even_imported(labelled_file, tiny_shape, runs):
    import subprocess

    code = f"""
import sys, headway
headway.pretrain(
    {str(labelled_file)!r}, model={tiny_shape!r}, steps=1, batch_size=4, vocab_size=200, max_length=32,
    runs={str(runs)!r}, quiet=True,
)
print("ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_runs_of_the_same_second_get_folders_of_their_own(corpus, tiny_shape, runs):
    settings: dict[str, Any] = {"model": tiny_shape, "steps": 1, "batch_size": 4, "runs": runs, "quiet": True}
    paths = {headway.pretrain(corpus=str(corpus.folder), **settings).path for _ in range(3)}
    assert len(paths) == 3
    assert all(Path(path, "config.json").is_file() for path in paths)
