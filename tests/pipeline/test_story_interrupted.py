"""A pipeline's story is whole in MLflow if its driver died, and if the server was away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

import headway
from headway.runs.journal import read_journal
from mlflow_server import MlflowServer
from waiting import wait_until

NAME = "story"


@pytest.fixture
def pipeline(tmp_path, labelled_file, tiny_shape) -> Path:
    task = {"kind": "classification", "source": str(labelled_file), "max_length": 48}
    training = {"batch_size": 8, "checkpoint_every": 1000}
    steps = {
        "corpus": {"use": "corpus", "source": str(labelled_file), "vocab_size": 300, "max_length": 32},
        "pretrain": {
            "use": "pretrain",
            "corpus": "${corpus}",
            "model": tiny_shape,
            "steps": 60,
            "log_every": 1,
            "system_metrics_interval_s": 0.2,
            **training,
        },
        "finetune": {"use": "finetune", "model": "${pretrain}", "task": task, "steps": 4, **training},
        "evaluate": {"use": "evaluate", "model": "${finetune}", "task": task},
        "register": {"use": "register", "model": "${finetune}", "name": "topics"},
    }
    path = tmp_path / "story.yaml"
    path.write_text(yaml.safe_dump({"name": NAME, "steps": steps}, sort_keys=False))
    return path


def runs_of(client: MlflowClient) -> dict[str, Any]:
    found = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def check_story(client: MlflowClient) -> None:
    """Nothing is missing, and nothing is there twice."""
    runs = runs_of(client)
    assert runs.keys() == {NAME, "corpus", "pretrain", "finetune", "evaluate", "register"}
    parent = runs.pop(NAME)
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    history = client.get_metric_history(runs["pretrain"].info.run_id, "mlm_loss")
    assert [metric.step for metric in history] == list(range(1, 61))
    system = client.get_metric_history(runs["pretrain"].info.run_id, "system/process_cores")
    assert [metric.step for metric in system] == list(range(1, len(system) + 1)) != []
    models = client.search_logged_models([parent.info.experiment_id])
    assert {model.name for model in models} == {"pretrain", "finetune"} and len(models) == 2
    assert {model.status.value for model in models} == {"READY"}
    for name in ("pretrain", "finetune"):
        assert len(runs[name].outputs.model_outputs) == 1
        assert runs[name].inputs.dataset_inputs
    [version] = client.search_model_versions("name = 'topics'")
    assert version.tags["test_accuracy"] and "## Scores" in version.description
    assert parent.data.metrics.keys() >= {"evaluate/accuracy", "pretrain/validation_loss_end"}


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[MlflowServer]:
    """A server that clients try to reach twice a call, and not for minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    server = MlflowServer(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.kill()


def test_a_server_that_was_away_has_the_whole_story(server, pipeline, tmp_path, caplog):
    """It dies while the encoder trains, until it is trained; and again when the next step begins its run."""
    folder = tmp_path / "runs" / NAME
    outages = []

    def journal_length() -> int:
        return sum(len(read_journal(path)) for path in folder.glob("pretrain/*/journal.jsonl"))

    def interfere() -> None:
        wait_until(lambda: journal_length() > 10)
        server.kill()
        wait_until(lambda: any(folder.glob("pretrain/*/model")) and "cannot be logged" in caplog.text)
        server.start()
        outages.append("training")
        wait_until(lambda: any(folder.glob("finetune/*/token")))
        server.kill()
        wait_until(lambda: "MLflow does not answer" in caplog.text)
        server.start()
        outages.append("between")

    thread = threading.Thread(target=interfere)
    thread.start()
    headway.run(pipeline, runs=tmp_path / "runs", quiet=True)
    thread.join()
    assert outages == ["training", "between"]
    check_story(MlflowClient(server.uri))


def test_a_pipeline_whose_driver_died_goes_on_in_the_same_run(pipeline, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("headway.steps.evaluate.score_models", interrupt)
        with pytest.raises(KeyboardInterrupt):
            headway.run(pipeline, runs=runs, quiet=True)
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    before = {name: run.info.run_id for name, run in runs_of(client).items()}
    assert runs_of(client)[NAME].info.status == runs_of(client)["evaluate"].info.status == "KILLED"
    headway.run(pipeline, runs=runs, quiet=True)
    after = {name: run.info.run_id for name, run in runs_of(client).items()}
    assert before.items() < after.items()
    check_story(client)
