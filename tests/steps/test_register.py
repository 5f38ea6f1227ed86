"""The step `register`."""

from __future__ import annotations

import shutil

import pytest

from headway.config.base import ConfigError
from headway.config.register import RegisterConfig
from headway.steps.register import run_register
from headway.tracking.references import model_folder


def test_a_classifier_becomes_the_champion(classifier, make_context, runs):
    config = RegisterConfig(model=str(classifier), name="news", alias="champion")
    context = make_context("register", runs)
    result = run_register(config, context)
    assert result.output == result.summary["model_uri"] == "models:/news@champion"
    assert result.summary["version"] == 1
    assert (model_folder("models:/news@champion", context.tracking) / "model.safetensors").is_file()
    assert run_register(config, context).summary["version"] == 2


def test_a_registered_model_may_be_registered_under_another_name(classifier, make_context, runs):
    context = make_context("register", runs)
    run_register(RegisterConfig(model=str(classifier), name="first"), context)
    copied = run_register(RegisterConfig(model="models:/first@champion", name="second"), context)
    assert copied.output == "models:/second@champion"
    first, second = (
        model_folder(f"models:/{name}@champion", context.tracking) for name in ("first", "second")
    )
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_an_encoder_without_labels_can_be_registered_too(encoder, make_context, runs):
    result = run_register(RegisterConfig(model=str(encoder), name="encoder"), make_context("register", runs))
    assert result.output == "models:/encoder@champion"


def test_what_no_server_could_load_is_refused(encoder, make_context, runs, tmp_path):
    shutil.copytree(encoder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    config = RegisterConfig(model=str(tmp_path / "model"), name="broken")
    with pytest.raises(ConfigError, match=r"has no \.safetensors"):
        run_register(config, make_context("register", runs))
