"""Batches that grow at first, in each kind of training: once a run, whatever says how long it is."""

from __future__ import annotations

from typing import Any

import pytest

from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.pretrain import PretrainConfig
from headway.data.corpus.tokenizer import load_tokenizer
from headway.runs.finetuning import FinetuningJob
from headway.runs.pretraining import PretrainingJob
from headway.tasks.preparation import prepared

WARMUP = {"batch_size": 12, "batch_warmup": {"start": 4, "fraction": 0.5}}


def sizes(job: Any) -> list[int]:
    """Rows of each step of a whole run."""
    batches = job.batches()[0]
    steps = range(job.config.total_steps(batches))
    return [len(batches.micro_batches(step, 0, 1, 1)[0].row_ids) for step in steps]


def pretraining(corpus: Any, **settings: Any) -> PretrainingJob:
    config = validate(PretrainConfig, {"corpus": str(corpus.folder)} | WARMUP | settings)
    return PretrainingJob(config, corpus.folder, None)


def test_batches_grow_once_in_a_run_of_phases(corpus):
    phases = [{"max_length": 16, "fraction": 0.75}, {"max_length": 32, "fraction": 0.25, "batch_size": 6}]
    assert sizes(pretraining(corpus, steps=8, phases=phases)) == [4, 6, 8, 10, 12, 12, 6, 6]


def test_batches_grow_in_a_run_of_epochs(corpus):
    job = pretraining(corpus, epochs=2)
    found = sizes(job)
    assert found[0] == 4 and found == sorted(found) and set(found[round(len(found) / 2) :]) == {12}
    assert sum(found) == pytest.approx(2 * job.batches()[0].rows, abs=12)


@pytest.mark.parametrize("length", [{"steps": 10}, {"epochs": 2}])
def test_batches_grow_in_fine_tuning(length, encoder, labelled_file, tmp_path):
    settings = {"model": str(encoder), "task": {"source": str(labelled_file)}} | WARMUP | length
    config = validate(FinetuneConfig, settings)
    task = prepared(config.task, load_tokenizer(encoder), tmp_path)
    job = FinetuningJob(config, encoder, task.folder)
    found = sizes(job)
    assert found[0] == 4 and found == sorted(found) and set(found[round(len(found) / 2) :]) == {12}
    if "epochs" in length:
        assert sum(found) == pytest.approx(2 * len(job.rows[0]), abs=12)
