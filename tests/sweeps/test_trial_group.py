"""Trials of a sweep that are Ray Train runs of several workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient

from headway.cluster.worker_group import WorkerResources
from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.sweep import SweepConfig
from headway.engine.parallel.worker import Worker
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.journal import Journal, read_journal
from headway.steps.sweep import run_sweep
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.trial_group import train_on_group
from headway.sweeps.trial_worker import TrialSpec, train_trial
from headway.tracking import tracking_uri
from waiting import wait_until


@pytest.fixture
def make_spec(encoder, labelled_file, make_context, tmp_path):
    """A function that makes a trial of fine-tuning with these settings, and its part of a sweep."""
    context = make_context("part")
    task = validate(FinetuneConfig, {"model": "m", "task": {"source": str(labelled_file), "max_length": 48}})

    def make(**settings) -> TrialSpec:
        folder = task_folder(task.task, encoder, context)
        config = validate(FinetuneConfig, {"model": str(encoder), "task": str(folder), **settings})
        trial = Ledger(tmp_path / "trials").new({})
        return TrialSpec(
            FinetuningJob(config, encoder, folder), trial, None, saves_states=False, measures_cost=False
        )

    return make


def test_two_trials_of_two_workers_each(encoder, labelled_file, make_context, runs, ray_cluster):
    config = SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            # The order of a grid is the seed's: the good one comes first.
            "search": {"optimizer.learning_rate": [2e-3, 1e-7]},
            "algorithm": "grid",
            "seed": 1,
            "scheduler": "asha",
            "metric": "loss",
            "reports": 2,
            "finetune": {"steps": 80, "batch_size": 16, "workers": 2, "log_rows": True},
        }
    )
    context = make_context("sweep-groups", runs)
    result = run_sweep(config, context)
    summary = result.summary
    assert (summary["trials"], summary["failed"], summary["stopped_early"]) == (2, 0, 1)
    assert summary["best"]["settings"] == {"optimizer.learning_rate": 2e-3}
    assert (Path(result.output) / "model.safetensors").is_file()
    for trial in (context.folder / "trials").glob("0*"):
        rows = [[json.loads(line) for line in path.open()] for path in sorted((trial / "rows").iterdir())]
        assert len(rows) == 2
        # Each of the two saw its own half of the first batch.
        seen = [set(lines[0]["rows"]) for lines in rows]
        assert [len(half) for half in seen] == [8, 8]
        assert not seen[0] & seen[1]

    client = MlflowClient(tracking_uri(runs))
    parent = client.get_run(summary["mlflow_run_id"]).info
    children = client.search_runs([parent.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    reasons = [child.data.tags.get("headway.reason") for child in children]
    assert sorted(map(str, reasons)) == ["None", "stopped by the scheduler"]
    written = {path: path.stat().st_mtime_ns for path in (context.folder / "trials").rglob("*.jsonl")}
    assert run_sweep(config, context).summary["best"] == summary["best"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_group_stops_when_its_trial_does_and_an_earlier_starts_measures_are_no_news(make_spec, ray_cluster):
    spec = make_spec(steps=1_000_000, evaluate_every=5, batch_size=16, workers=2)
    Journal(spec.paths.journal, 0).append(3, {"validation_loss": 0.1})
    told = []

    def stop_at_an_evaluation(step, metrics):
        if step and "validation_loss" in metrics:
            told.append(step)
            raise SystemExit

    with pytest.raises(SystemExit):
        train_on_group(spec, WorkerResources(cpus=1), stop_at_an_evaluation)
    assert told == [5]
    last = read_journal(spec.paths.journal)[-1].step
    assert 5 <= last < 1_000_000
    assert not spec.trial.model.exists()
    assert spec.trial.ended is None


def test_a_trial_whose_actor_was_killed_begins_again_with_the_cores_of_its_group(make_spec, ray_cluster):
    spec = make_spec(steps=1_000_000, evaluate_every=5, batch_size=16, workers=2)

    class TrialActor:
        def train(self, spec: TrialSpec) -> None:
            train_on_group(spec, WorkerResources(cpus=1), lambda step, metrics: None)

    def trained() -> int:
        return len(read_journal(spec.paths.journal)) if spec.paths.journal.exists() else 0

    def begin() -> ray.actor.ActorHandle:
        actor = ray.remote(num_cpus=0)(TrialActor).remote()
        actor.train.remote(spec)
        wait_until(lambda: trained() > 2)
        return actor

    ray.kill(begin())
    spec.paths.journal.unlink()
    again = begin()
    spec.paths.stop_sign.touch()
    wait_until(lambda: not (spec.trial.folder / "group").exists())
    ray.kill(again)


class Recorder:
    """Receives what a trial reports; loses the trial at a step."""

    def __init__(self, lost_at: int | None = None) -> None:
        self.evaluations: dict[int, float] = {}
        self._lost_at = lost_at

    def __call__(self, step, metrics):
        if step == self._lost_at:
            raise ConnectionError("the node died")
        if "validation_loss" in metrics:
            self.evaluations[step] = metrics["validation_loss"]


def test_a_lost_trial_continues_from_its_newest_state_and_reports_again(make_spec, monkeypatch):
    monkeypatch.setattr("headway.sweeps.trial_worker.SECONDS_BETWEEN_STATES", 0.0)
    settings = {"steps": 20, "evaluate_every": 5, "checkpoint_every": 5, "batch_size": 16}
    spec, untouched = make_spec(**settings), Recorder()
    train_trial(make_spec(**settings), Worker(), 0.0, untouched)
    with pytest.raises(ConnectionError):
        train_trial(spec, Worker(), 0.0, Recorder(lost_at=15))
    wait_until(lambda: spec.paths.newest_state() == 10)
    before = [entry for entry in read_journal(spec.paths.journal) if 0 < entry.step <= 10]
    recorder = Recorder()
    train_trial(spec, Worker(), 0.0, recorder)
    assert [entry for entry in read_journal(spec.paths.journal) if 0 < entry.step <= 10] == before
    assert recorder.evaluations == untouched.evaluations
    assert list(recorder.evaluations) == [5, 10, 15, 20]


def test_a_short_trial_saves_no_states(make_spec):
    spec = make_spec(steps=4, checkpoint_every=1, batch_size=16)
    train_trial(spec, Worker(), 0.0, Recorder())
    assert spec.paths.newest_state() == 0
    assert spec.trial.model.is_dir()


def test_a_trial_whose_loss_is_no_number_has_failed(make_spec):
    spec = make_spec(steps=20, batch_size=16, optimizer={"learning_rate": 1e30})
    train_trial(spec, Worker(), 0.0)
    assert spec.trial.ended.state is TrialState.FAILED
    assert "is not finite; try a lower learning_rate" in spec.trial.ended.reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetune": {"workers": [1, 2]}}, r"finetune.workers: \[1, 2\]; a trial has a fixed number"),
        ({"search": {"workers": [1, 2]}}, "search.workers: all trials of a sweep have the same"),
        ({"finetune": {"workers": 2}, "scheduler": "pbt"}, "finetune.workers: pbt pauses and clones trials"),
    ],
)
def test_workers_that_trials_cannot_have_are_refused(settings, message, make_context):
    base = {"model": "m", "task": {"source": "s"}, "search": {"optimizer.learning_rate": [1e-3]}}
    with pytest.raises(ConfigError, match=message):
        run_sweep(SweepConfig.model_validate(base | settings), make_context("sweep"))
