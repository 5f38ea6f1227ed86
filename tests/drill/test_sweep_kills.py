"""A sweep whose driver is killed again and again still runs every trial to its end exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from headway.tracking import tracking_uri
from waiting import PATIENCE


def start(file: Path, runs: Path) -> subprocess.Popen[bytes]:
    options = ["--runs", str(runs), "--quiet"]
    command = [sys.executable, "-m", "headway.cli.main", "sweep", str(file), *options]
    log = (runs.parent / "driver.log").open("ab")
    # A group of its own: the kill hits the driver alone, and what outlives it can be cleared away after.
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def wait_until_trials_run(folder: Path, known: int, driver: subprocess.Popen[bytes]) -> None:
    """Until something new was measured since this driver began, so that the kill meets a sweep at work."""
    deadline = time.monotonic() + PATIENCE
    while driver.poll() is None and time.monotonic() < deadline:
        if sum(len(path.read_text()) for path in folder.rglob("journal.jsonl")) != known:
            return
        time.sleep(0.05)


def ended_trials(folder: Path) -> dict[str, tuple[str, int]]:
    """Of each trial that ended: its journal, and when that was last written."""
    return {
        path.parent.name: (
            (path.parent / "journal.jsonl").read_text(),
            (path.parent / "journal.jsonl").stat().st_mtime_ns,
        )
        for path in sorted(folder.glob("sweep/*/trials/*/ended.json"))
    }


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("workers", "trials", "most_kills"),
    [
        pytest.param(1, 5, 3, id="short"),
        pytest.param(1, 14, 10, marks=pytest.mark.long),
        pytest.param(2, 4, 4, marks=pytest.mark.long),
    ],
)
def test_kills_lose_no_trial_and_repeat_none(workers, trials, most_kills, encoder, labelled_file, tmp_path):
    settings = {
        "model": str(encoder),
        "task": {"source": str(labelled_file), "max_length": 48},
        "search": {"optimizer.learning_rate": "loguniform(1e-4, 6e-3)", "batch_size": [8, 16]},
        "samples": trials,
        "scheduler": "asha",
        "reports": 4,
        "finetune": {"epochs": 12, "batch_size": 8, "workers": workers},
    }
    file, runs = tmp_path / "sweep.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(settings))
    rng = random.Random(0)
    repeated, kills = 0, 0
    ended: dict[str, tuple[str, int]] = {}
    while True:
        known = sum(len(path.read_text()) for path in runs.rglob("journal.jsonl"))
        driver = start(file, runs)
        if kills < most_kills:
            wait_until_trials_run(runs, known, driver)
            time.sleep(rng.uniform(0.0, 6.0))
        else:
            driver.wait(timeout=PATIENCE)
        if driver.poll() is not None:
            break
        kills += 1
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        # Processes of its local cluster notice within a moment that the driver is gone.
        time.sleep(1.0)
        now = ended_trials(runs)
        repeated += sum(now.get(name) != before for name, before in ended.items())
        ended = now
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()[-2000:]
    final = ended_trials(runs)
    repeated += sum(final[name] != before for name, before in ended.items())
    lost = trials - len(final)

    [sweep] = runs.glob("sweep/*/sweep.json")
    client = MlflowClient(tracking_uri(runs))
    parent = client.get_run(json.loads(sweep.read_text())["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    names = sorted(child.info.run_name for child in children)
    report = {
        "workers": workers,
        "kills": kills,
        "trials": trials,
        "trials_lost": lost,
        "trials_repeated": repeated,
    }
    print(json.dumps(report))
    assert kills >= most_kills / 2
    assert (lost, repeated) == (0, 0)
    assert names == [f"trial {number:05d}" for number in range(trials)]
    assert parent.info.status == "FINISHED"
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        steps = [entry.step for entry in client.get_metric_history(child.info.run_id, "validation_loss")]
        assert steps == sorted(set(steps))
