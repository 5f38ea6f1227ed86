"""What a reference to a model stands for when it begins to be served."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.serving.rollout.watch import AliasWatch, ChallengerWatch, current_releases
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


def test_a_promoted_challenger_is_the_version_that_was_tried_and_not_a_second_copy(
    folders, tmp_path, monkeypatch
):
    """Also if a server hands its files out, of which each watch would have had a copy of its own."""
    downloads = []

    def download(source: str, dst_path: str, tracking_uri: str) -> str:
        downloads.append(source)
        return str(shutil.copytree(folders["classify"], Path(dst_path) / "weights"))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
    second = SimpleNamespace(version=2)
    tracking = Tracking("http://registry", tmp_path)
    client = SimpleNamespace(
        get_model_version_by_alias=lambda name, alias: second,
        get_model_version=lambda name, version: second,
        get_registered_model=lambda name: SimpleNamespace(aliases={"next": 2}),
        get_model_version_download_uri=lambda name, version: f"mlflow-artifacts:/{name}/{version}",
    )
    monkeypatch.setitem(vars(tracking), "client", client)
    tried: list[Release | None] = []
    served: list[Release] = []
    ChallengerWatch("models:/topics@champion", "next", tracking, 1.0, lambda _, r: tried.append(r)).look()
    AliasWatch("models:/topics@champion", tracking, 1.0, served.append).look()
    assert tried == served and len(downloads) == 1
