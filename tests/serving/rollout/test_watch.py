"""What a reference to a model stands for when it begins to be served, and how its aliases are followed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException

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


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Tracking:
    """A registry with two versions of `topics`, whose weights lie in folders named after them."""
    tracking = Tracking.at(tmp_path)
    tracking.client.create_registered_model("topics")
    for _ in range(2):
        tracking.client.create_model_version("topics", source=str(tmp_path))
    tracking.client.set_registered_model_alias("topics", "champion", "1")

    def fetch(_: Tracking, reference: str) -> Path:
        return tmp_path / reference.rpartition("/")[2]

    monkeypatch.setattr(Tracking, "download_weights", fetch)
    return tracking


def challenger_watch(tracking: Tracking) -> tuple[ChallengerWatch, list[tuple[str, Release | None]]]:
    """A watch of the alias `challenger`, and what it asks to be tried, in order."""
    told: list[tuple[str, Release | None]] = []
    watch = ChallengerWatch(
        "models:/topics@champion",
        "challenger",
        tracking,
        1.0,
        lambda name, release: told.append((name, release)),
        "news",
    )
    return watch, told


def test_a_challenger_is_tried_while_a_version_has_the_alias_and_ends_with_it(registry, tmp_path):
    watch, told = challenger_watch(registry)
    watch.look()
    registry.client.set_registered_model_alias("topics", "challenger", "2")
    watch.look()
    registry.client.delete_registered_model_alias("topics", "challenger")
    watch.look()
    assert told == [("news", None), ("news", Release("news", "2", str(tmp_path / "2"))), ("news", None)]


def test_a_challenger_goes_on_while_the_registry_does_not_answer(registry, monkeypatch):
    watch, told = challenger_watch(registry)

    def away(*_: object) -> None:
        raise MlflowException("the server is away")

    monkeypatch.setattr(type(registry.client), "get_registered_model", away)
    with pytest.raises(MlflowException):
        watch.look()
    assert told == []


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
