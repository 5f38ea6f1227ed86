"""Models that refer to their folders, in a real MLflow on SQLite and in its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from headway.data.sources.origin import in_memory
from headway.tracking import Tracking
from headway.tracking.data_split import DataSplit
from headway.tracking.logged_models import Scores, log_reference, logged_model_of

TEST = DataSplit("texts/test", "0123", in_memory(), "test", 12)
VALIDATION = DataSplit("texts/validation", "4567", in_memory(), "validation", 10)


@pytest.fixture(params=["sqlite", "files"])
def tracking(request, tmp_path, monkeypatch) -> Tracking:
    if request.param == "files":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return Tracking.at(tmp_path / "runs")


@pytest.fixture
def client(tracking) -> MlflowClient:
    return MlflowClient(tracking.uri)


def folder_of(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def logged(tracking: Tracking, folder: Path, *scores: Scores) -> Any:
    with tracking.run("tests", "train") as run:
        run.log_inputs([TEST, VALIDATION])
        model_id = log_reference(run, "finetune", folder, "classification", {"steps": 3}, scores)
    return MlflowClient(tracking.uri).get_logged_model(model_id)


def test_a_step_that_is_continued_has_one_model(tracking, client, tmp_path):
    folder = folder_of(tmp_path, "one")
    first = logged(tracking, folder)
    again = logged(tracking, folder, Scores({"test_accuracy": 0.5}, TEST))
    assert again.model_id == first.model_id == logged_model_of(client, folder)
    assert [(m.key, m.value, m.dataset_name) for m in again.metrics] == [("test_accuracy", 0.5, "texts/test")]
    assert again.params == {"steps": "3"}
    assert again.tags["headway.folder"] == str(folder)


def test_another_server_has_another_model(tracking, tmp_path):
    folder = folder_of(tmp_path, "one")
    first = logged(tracking, folder)
    elsewhere = Tracking(f"sqlite:///{tmp_path}/other.db", tmp_path)
    assert logged_model_of(elsewhere.client, folder) is None
    assert logged(elsewhere, folder).model_id != first.model_id


def test_models_are_ranked_on_one_side_of_the_split(tracking, client, tmp_path):
    scores = {"good": (0.9, 0.1), "bad": (0.2, 0.8), "none": (math.nan, 0.5)}
    names = {}
    for name, (test, validation) in scores.items():
        measured = [Scores({"accuracy": test}, TEST), Scores({"accuracy": validation}, VALIDATION)]
        names[logged(tracking, folder_of(tmp_path, name), *measured).model_id] = name

    def ranked(data: DataSplit) -> list[str]:
        order = {"field_name": "metrics.accuracy", "ascending": False}
        rows = {"dataset_name": data.name, "dataset_digest": data.digest}
        experiment = client.get_experiment_by_name("tests").experiment_id
        found = client.search_logged_models([experiment], order_by=[order | rows])
        return [names[model.model_id] for model in found]

    assert ranked(TEST) == ["good", "bad", "none"], "what is not a number is last, and not 0"
    assert ranked(VALIDATION) == ["bad", "none", "good"]
