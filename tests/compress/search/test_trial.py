"""One candidate of a search: what it makes, and what a restart finds of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from headway.compress.search.job import SearchJob
from headway.compress.search.measuring import folder_bytes, served_scores
from headway.compress.search.outcome import candidates_of
from headway.compress.search.study import study_original
from headway.compress.search.trial import try_candidate
from headway.config.compression.compress import CompressConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.engine.formats.packed import is_packed
from headway.engine.model.encoder import load_as_saved
from headway.engine.parallel.worker import Worker
from headway.engine.pruning.cut import sizes_of
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.held_out import score_model
from headway.runs.teaching import taught_job
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.search.space import trial_settings
from headway.tasks.task import open_task


@pytest.fixture(scope="module")
def settings(classifier, labelled_file):
    finetune = {"epochs": 10, "batch_size": 16, "optimizer": {"learning_rate": 3e-3}}
    task = {"source": str(labelled_file), "max_length": 48}
    target = {"size": "0.5x", "max_quality_loss": "10%"}
    return {"model": str(classifier), "task": task, "target": target, "finetune": finetune}


@pytest.fixture
def job(settings, classifier, make_context, runs):
    config = validate(CompressConfig, settings)
    context = make_context("compress", runs)
    task = task_folder(config.task, classifier, context)
    shared = config.shared | {"model": str(classifier), "task": str(task)}
    base = FinetuningJob(trial_settings(FinetuneConfig, shared, {}), classifier, task)
    study = study_original(classifier, task, 32, 0, orders_layers=True)
    stores = context.stores / "tasks"
    sizes = sizes_of(load_as_saved(classifier))
    score = study["scores"]["accuracy"]
    return SearchJob(config, taught_job(base, context), sizes, study["layer_order"], score, stores)


def test_a_candidate_is_cut_trained_and_measured_as_it_is_served(job, classifier, tmp_path):
    trial = Ledger(tmp_path).new({"layers": 1, "neurons": 64, "vocabulary": 150})
    result = try_candidate(job, trial, Worker())
    assert result is not None
    model = AutoModelForSequenceClassification.from_pretrained(trial.model)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (1, 64)
    assert model.dtype == torch.float16
    assert len(AutoTokenizer.from_pretrained(trial.model)) == 150
    kept, *others = candidates_of(trial)
    assert {one.precision for one in [kept, *others]} >= {"int8"}
    assert kept.score == result["accuracy"] > 0.6
    assert kept.ratios["size"] == result["size_ratio"] == kept.size / folder_bytes(classifier) < 0.5
    assert kept.size == folder_bytes(trial.model)
    assert (trial.model / "int8.json").exists() == (kept.precision == "int8")
    task = job.task_of(trial.model)
    served = served_scores(trial.model, kept.precision, task, "validation")
    assert kept.score == served["accuracy"]
    assert trial.evaluations()[-1].metrics["accuracy"] == kept.score


def test_a_candidate_may_be_packed(job, tmp_path):
    sizes = []
    for weights in ("float16", "int8"):
        one = replace(job, config=job.config.model_copy(update={"weights": weights}))
        trial = Ledger(tmp_path / weights).new({})
        assert try_candidate(one, trial, Worker()) is not None
        assert is_packed(trial.model) == (weights == "int8")
        sizes.append(candidates_of(trial)[0].size)
        assert candidates_of(trial)[0].score == pytest.approx(job.score, abs=0.15)
    assert sizes[1] < sizes[0]


def test_a_restart_finds_what_was_trained_and_measured(job, tmp_path, monkeypatch):
    trial = Ledger(tmp_path).new({"layers": 1})
    first = try_candidate(job, trial, Worker())
    weights = (trial.model / "model.safetensors").read_bytes()
    journal = trial.journal.read_text()
    monkeypatch.setattr("headway.compress.search.trial.train_trial", None)
    monkeypatch.setattr("headway.compress.search.outcome.measured_beside", None)
    again = try_candidate(job, Ledger(tmp_path).trials()[0], Worker())
    assert again == first
    assert (trial.model / "model.safetensors").read_bytes() == weights
    steps = [json.loads(line)["step"] for line in trial.journal.read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in journal.splitlines()]


def test_the_original_is_measured_as_it_is_and_stays_as_it_was(job, classifier, tmp_path):
    before = {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()}
    trial = Ledger(tmp_path).new({})
    result = try_candidate(job, trial, Worker())
    assert result is not None
    assert result["accuracy"] == pytest.approx(job.score, abs=0.1)
    assert {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()} == before


def test_what_a_server_computes_is_what_is_scored(classifier, job):
    task = open_task(job.base.task_folder)
    served = served_scores(classifier, "fp32", task, "test")
    trained = score_model(classifier, task)
    assert served["accuracy"] == trained["accuracy"]
    assert np.isfinite(served["loss"])


def test_a_candidate_whose_settings_cannot_be_ends_as_failed(job, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from ray import tune

    from headway.cluster.worker_group import WorkerResources
    from headway.compress.search.trial import run_candidate

    trial = Ledger(tmp_path).new({"vocabulary": 3})
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a"))
    point = {"number": 0, "sampled": trial.sampled}
    run_candidate({"point": point}, job, Path(tmp_path), WorkerResources(1, 0.0, True))
    ended = trial.ended
    assert ended is not None
    assert ended.state is TrialState.FAILED
    assert ended.reason.startswith("vocabulary: 3 is not allowed")
