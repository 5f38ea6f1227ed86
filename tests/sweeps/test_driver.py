"""What may happen to the driver of a sweep while its trials run; they sleep instead of training."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from lib.sleeping_trials import sleeping, sleeping_sweep

from headway.steps.sweep import run_sweep
from headway.sweeps.ledger import Ledger
from waiting import wait_until


class ServerAway:
    """MLflow's client, which cannot reach its server from the first trial's start to the last one's end."""

    def __init__(self, client: Any, trials: Path, total: int) -> None:
        self._client = client
        self._trials = trials
        self._total = total
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        begun, ended = (sum(1 for _ in self._trials.glob(f"*/{name}.json")) for name in ("trial", "ended"))
        if begun and ended < self._total:
            self.refused += 1
            raise ConnectionError("the server is away")
        return getattr(self._client, name)


def children_of(context: Any, parent: str) -> list[Any]:
    client = context.tracking.client
    experiment = client.get_run(parent).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"))


def test_mlflow_may_be_away_while_trials_run(ray_cluster, make_context, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.sweeps.report.trial_log._PAUSE_SECONDS", 0.1)
    context = make_context("sweep")
    away = ServerAway(context.tracking.client, context.folder / "trials", total=4)
    vars(context.tracking)["client"] = away
    with sleeping(1.0):
        result = run_sweep(sleeping_sweep(tmp_path, samples=4, reports=3), context)
    assert away.refused > 0
    assert result.summary["trials"] == 4
    children = children_of(context, result.summary["mlflow_run_id"])
    assert sorted(child.info.run_name for child in children) == [f"trial 0000{n}" for n in range(4)]
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        history = context.tracking.client.get_metric_history(child.info.run_id, "validation_loss")
        assert [metric.step for metric in history] == [10, 20, 30]


def test_an_interrupted_sweep_has_no_result_and_can_be_continued(ray_cluster, make_context, tmp_path):
    """Ray Tune alone would take Ctrl-C for the end, and the best trial so far would win."""
    handler = signal.getsignal(signal.SIGINT)
    context = make_context("sweep")
    config = sleeping_sweep(tmp_path, samples=4, reports=2, concurrency=1)

    def interrupt() -> None:
        wait_until(lambda: list((context.folder / "trials").glob("*/ended.json")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with sleeping(1.0), pytest.raises(KeyboardInterrupt):
        thread.start()
        run_sweep(config, context)
    thread.join()
    [run] = context.tracking.client.search_runs(["1"], "attributes.run_name = 'sweep'")
    assert run.info.status == "KILLED"
    done = [trial.number for trial in Ledger(context.folder / "trials").trials() if trial.ended]
    assert 0 < len(done) < 4
    with sleeping(0.2):
        result = run_sweep(config, context)
    assert result.summary["trials"] == 4
    assert result.summary["mlflow_run_id"] == run.info.run_id
    assert signal.getsignal(signal.SIGINT) is handler, "the next Ctrl-C would be swallowed"
