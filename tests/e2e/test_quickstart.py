"""From raw text to a served encoder with one command, then the same command again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from ports import free_port
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
PORT = free_port()


def tiny(shipped: dict[str, Any], source: Path, shape: dict[str, Any]) -> dict[str, Any]:
    """The pipeline that ships, step by step, on a small corpus with a small budget."""
    steps = shipped["steps"]
    task = {"kind": "classification", "source": str(source), "held_out": 0.2, "max_length": 48}
    finetune = {"batch_size": 16, "optimizer": {"learning_rate": 3e-3}}
    steps["corpus"] |= {"source": str(source), "vocab_size": 300, "max_length": 32}
    steps["pretrain"] |= {"model": shape, "steps": 150, "batch_size": 16}
    steps["pretrain"]["optimizer"] = {"name": "adamw", "learning_rate": 3e-3}
    steps["sweep"] |= {"task": task, "samples": 2, "finetune": {"steps": 96, "batch_size": 16}}
    steps["sweep"]["search"] = {
        "optimizer.learning_rate": "loguniform(2e-3, 5e-3)",
        "optimizer.name": ["adamw"],
    }
    steps["evaluate"] |= {"task": task, "few_labels": [4], "seeds": 2, "finetune": finetune | {"steps": 4}}
    steps["serve"] |= {"port": PORT, "demo_texts": 5, "demo_source": {"source": str(source), "held_out": 0.2}}
    steps["serve"]["replicas"] = 1
    return shipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory, labelled_file, tiny_shape) -> Path:
    """Where the command is called, with the pipeline beside it."""
    folder = tmp_path_factory.mktemp("quickstart")
    shipped = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())
    settings = tiny(shipped, labelled_file, tiny_shape)
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def headway(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headway.cli.main", "run", "quickstart.yaml", *options],
        cwd=folder,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def first(folder) -> subprocess.CompletedProcess[str]:
    return headway(folder)


@pytest.fixture(scope="module")
def made(folder, first) -> dict[str, Any]:
    """The summary of the first run, read before the second replaces it."""
    assert first.returncode == 0, first.stdout + first.stderr
    return summary_of(folder)


@pytest.fixture(scope="module")
def logged(folder, made) -> list[Run]:
    """What MLflow holds of the first run, before the second adds its own."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("quickstart").experiment_id]))


@pytest.fixture(scope="module")
def second(folder, made, logged) -> subprocess.CompletedProcess[str]:
    return headway(folder)


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())


def test_one_command_goes_from_text_to_a_served_encoder(made):
    pretrain, evaluate, sweep = made["pretrain"], made["evaluate"], made["sweep"]
    assert pretrain["validation_loss_end"] < pretrain["validation_loss_start"]
    assert pretrain["tokens_per_second"] > 0
    right = evaluate["accuracy_random_init"] * evaluate["texts"]
    assert right == pytest.approx(round(right))
    assert evaluate["accuracy_tfidf"] == 1.0
    assert evaluate["accuracy"] > 0.6
    assert set(evaluate["few_labels"]["4"]) == {"pretrained", "random_init", "tfidf"}
    assert sweep["trials"] == 2
    assert sweep["best"]["settings"]["optimizer.name"] == "adamw"
    assert made["register"]["model_uri"] == "models:/bbc-news@champion"
    assert (made["serve"]["requests"], made["serve"]["failed"]) == (5, 0)
    assert list(made["wall_seconds"]) == ["corpus", "pretrain", "sweep", "evaluate", "register", "serve"]
    assert made["wall_seconds"]["pretrain"] > made["wall_seconds"]["corpus"] > 0


def test_it_ends_with_what_was_made_and_how_to_look_further(folder, first):
    for part in (
        "quickstart: done",
        "summary.json",
        "mlflow ui",
        "headway predict --model",
        "curl -s http://",
    ):
        assert part in first.stdout
    assert "Traceback" not in first.stdout + first.stderr


def test_its_output_is_lines_that_a_log_can_hold(first):
    """Not on a terminal: no cursor movement, no colour, no flood from the libraries."""
    assert "\x1b[" not in first.stdout
    assert len(first.stdout.splitlines()) < 150
    noise = [line for line in first.stderr.splitlines() if line.strip()]
    assert len(noise) < 10, first.stderr


def test_mlflow_shows_one_pipeline_with_its_steps_and_their_trials_under_it(folder, logged):
    ids = {run.info.run_id: run.info.run_name for run in logged}
    parents = {run.info.run_name: ids.get(run.data.tags.get("mlflow.parentRunId")) for run in logged}
    steps = ["corpus", "pretrain", "sweep", "evaluate", "register", "serve"]
    assert parents == {
        "quickstart": None,
        **dict.fromkeys(steps, "quickstart"),
        "trial 00000": "sweep",
        "trial 00001": "sweep",
    }
    by_name = {run.info.run_name: run for run in logged}
    for name in ("headway.version", "headway.packages", "headway.cluster", "headway.data_digest"):
        assert by_name["trial 00000"].data.tags[name] == by_name["sweep"].data.tags[name]
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    version = client.get_model_version_by_alias("bbc-news", "champion")
    assert float(version.tags["test_accuracy"]) > 0.6
    assert version.run_id == by_name["sweep"].info.run_id


def test_a_second_run_computes_nothing_and_serves_again(folder, first, second):
    assert second.returncode == 0, second.stdout + second.stderr
    summary = summary_of(folder)
    assert summary["cached"] == ["corpus", "pretrain", "sweep", "evaluate", "register"]
    assert sum(": " in line and "cached" in line for line in second.stdout.splitlines()) >= 5
    assert (summary["serve"]["requests"], summary["serve"]["failed"]) == (5, 0)


def test_nothing_is_left_running(second):
    import socket

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", PORT)) != 0


@pytest.fixture
def two_nodes(monkeypatch) -> Iterator[str]:
    """Address of a cluster of two nodes of one core each."""
    monkeypatch.delenv("RAY_OVERRIDE_RESOURCES")
    node: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


def test_it_ends_on_a_cluster_of_two_nodes_of_one_core(
    two_nodes, labelled_file, tiny_shape, tmp_path, monkeypatch
):
    """Nothing that it starts asks for more than one node has."""
    shipped = yaml.safe_load((ROOT / "pipelines" / "quickstart.yaml").read_text())
    settings = tiny(shipped, labelled_file, tiny_shape)
    steps = settings["steps"]
    steps["pretrain"]["steps"] = steps["sweep"]["finetune"]["steps"] = 8
    steps["evaluate"]["seeds"] = 1
    steps["serve"]["port"] = free_port()
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    done = headway(tmp_path, "--address", two_nodes)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = summary_of(tmp_path)
    assert set(summary["evaluate"]["few_labels"]["4"]) == {"pretrained", "random_init", "tfidf"}
    assert (summary["serve"]["requests"], summary["serve"]["failed"]) == (5, 0)
