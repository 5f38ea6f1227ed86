"""What a reference to a model stands for when it begins to be served."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.serving.rollout.watch import current_releases
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking


def test_a_registered_model_is_fetched_once(tmp_path, monkeypatch):
    fetched = []

    def fetch(tracking: Tracking, reference: str) -> Path:
        fetched.append(reference)
        return tmp_path

    monkeypatch.setattr(Tracking, "registered_version", lambda tracking, reference: ("topics", "3"))
    monkeypatch.setattr(Tracking, "download_weights", fetch)
    config = ServeConfig.model_validate({"model": "models:/topics@champion"})
    assert current_releases(config, Tracking.at(tmp_path)) == [Release("topics", "3", str(tmp_path))]
    assert fetched == ["models:/topics@champion"]


def test_a_folder_may_be_named_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")
    config = ServeConfig.model_validate({"models": {"small": {"model": "~/minilm"}}})
    assert current_releases(config, Tracking.at(tmp_path)) == [
        Release("small", "local", str(tmp_path / "minilm"))
    ]


def test_a_folder_without_a_model_is_refused(tmp_path):
    config = ServeConfig.model_validate({"model": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="is not a folder with a transformers model"):
        current_releases(config, Tracking.at(tmp_path))
