"""Pipelines as jobs of a cluster, and the launcher that starts its machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobSubmissionClient

from ports import deaf_port, free_port
from waiting import PATIENCE, wait_until

PORT = free_port()
API = f"http://127.0.0.1:{PORT}"


def headway(*arguments: str, folder: Path, expect: int = 0) -> str:
    command = [sys.executable, "-m", "headway.cli.main", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


def submitted(*arguments: str, folder: Path, runs: Path) -> str:
    """The job's name; a head that has just started takes a while before it takes jobs."""
    command = [
        sys.executable,
        "-m",
        "headway.cli.main",
        "submit",
        *arguments,
        "--runs",
        str(runs),
        "--api",
        API,
    ]
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode == 0 or "No available agent" not in done.stderr or time.monotonic() > deadline:
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()
        time.sleep(1)


def status_after(job: str, folder: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = headway("status", job, "--api", API, folder=folder).strip()
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            return status
    return status


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head: dict[str, Any] = {
        "num_cpus": 1,
        "include_dashboard": True,
        "dashboard_port": PORT,
        "dashboard_agent_listen_port": free_port(),
    }
    with pytest.MonkeyPatch.context() as patch:
        # As in cluster.yaml: jobs find the Python of Ray and Headway first.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 80 << 20})
        yield cluster
        cluster.shutdown()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder with texts and a pipeline that refers to them by a relative path."""
    folder = tmp_path / "project"
    (folder / "texts").mkdir(parents=True)
    for number in range(12):
        sentences = [f"Text {number} has a sentence number {place} of its own." for place in range(8)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(sentences))
    step = {"use": "corpus", "source": "texts", "vocab_size": 64, "max_length": 16}
    (folder / "pipeline.yaml").write_text(json.dumps({"name": "far", "steps": {"corpus": step}}))
    return folder


def test_pipeline_runs_on_the_cluster_without_this_process(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    job = submitted("pipeline.yaml", folder=project, runs=runs)
    assert status_after(job, project) == "SUCCEEDED", headway("logs", job, "--api", API, folder=project)
    assert "corpus" in headway("logs", job, "--api", API, "--follow", folder=project)
    facts = json.loads(headway("status", job, "--api", API, "--wait", "--json", folder=project))
    assert (facts["job"], facts["status"], facts["exit_code"]) == (job, "SUCCEEDED", 0)
    assert facts["started"] < facts["ended"] < time.time()
    assert (runs / "far" / "summary.json").is_file()


def test_cancelled_job_stops(cluster: Cluster, project: Path, tmp_path: Path) -> None:
    step = {
        "use": "pretrain",
        "corpus": {"source": "texts", "vocab_size": 64, "max_length": 16},
        "model": {"preset": "bert-tiny"},
        "steps": 100_000,
        "batch_size": 8,
    }
    (project / "long.yaml").write_text(json.dumps({"name": "long", "steps": {"pretrain": step}}))
    runs = tmp_path / "runs"
    assert submitted("long.yaml", "--name", "long-job", folder=project, runs=runs) == "long-job"
    wait_until(lambda: list(runs.glob("long/pretrain/*/journal.jsonl")))
    headway("cancel", "long-job", "--api", API, folder=project)
    assert status_after("long-job", project) == "STOPPED"
    assert list(runs.glob("long/pretrain/*/state/step-*/manifest.json")), "a state was saved first"


SECRET = "s3cret"
ADDRESS = f"nowhere://ann:{SECRET}@tracking"
"""Of a kind that MLflow refuses at once, and tells whole."""


def known_to_the_dashboard() -> str:
    return repr([vars(job) for job in JobSubmissionClient(API).list_jobs()])


def test_a_jobs_tracking_password_arrives_and_is_shown_nowhere(
    cluster: Cluster, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"use": "finetune", "model": "models:/name@alias", "task": {"source": "texts"}}
    (project / "secret.yaml").write_text(json.dumps({"name": "secret", "steps": {"finetune": step}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    job = submitted("secret.yaml", "--name", "secret-job", folder=project, runs=tmp_path / "runs")
    assert status_after(job, project) == "FAILED"
    told = headway("logs", job, "--api", API, "--follow", folder=project, expect=2)
    assert told.endswith("job 'secret-job': FAILED\n")
    written = headway("logs", job, "--api", API, folder=project)
    assert "error: MLFLOW_TRACKING_URI: 'nowhere://ann:***@tracking' cannot be used" in written
    assert SECRET not in written
    assert "secret-job" in known_to_the_dashboard()
    assert SECRET not in known_to_the_dashboard()


def test_a_drivers_tracking_password_reaches_its_workers_and_is_shown_nowhere(
    cluster: Cluster,
) -> None:
    script = f"""
import os, ray
from headway.cluster import connect
connect.connect({cluster.address!r}, os.environ["MLFLOW_TRACKING_URI"])
print(ray.get(ray.remote(lambda: os.environ["MLFLOW_TRACKING_URI"]).remote()))
from ray.job_submission import JobSubmissionClient
print([vars(job) for job in JobSubmissionClient({API!r}).list_jobs()])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"MLFLOW_TRACKING_URI": ADDRESS},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    at_the_worker, jobs = done.stdout.strip().splitlines()
    assert at_the_worker == ADDRESS
    assert "DRIVER" in jobs and SECRET not in jobs
    for log in Path(cluster.head_node.get_session_dir_path(), "logs").rglob("*"):
        assert not log.is_file() or SECRET.encode() not in log.read_bytes(), log


def test_unknown_job_is_one_line(cluster: Cluster, project: Path) -> None:
    assert "error: job: 'nobody' does not exist on this cluster" in headway(
        "status", "nobody", "--api", API, folder=project, expect=2
    )


def test_no_cluster_is_one_line(project: Path) -> None:
    with deaf_port() as port:
        message = headway("status", "job", "--api", f"http://127.0.0.1:{port}", folder=project, expect=2)
    assert message.startswith("error: --api: no dashboard of a cluster answers")
    assert len(message.splitlines()) == 1


def test_runs_must_be_where_all_machines_see_them(project: Path) -> None:
    message = headway("submit", "pipeline.yaml", "--runs", "runs", folder=project, expect=2)
    assert "an absolute path that all machines share" in message


def test_launcher_needs_its_file(project: Path) -> None:
    message = headway("up", "nowhere.yaml", folder=project, expect=2)
    assert "error: cluster: 'nowhere.yaml' does not exist" in message
