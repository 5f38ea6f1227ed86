"""A teacher's outputs: computed once, joined with the student's rows, refused if they are not the task's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import headway
from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.sweep import SweepConfig
from headway.runs import teaching
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.teaching import taught_job
from headway.steps.sweep import _sweep_job
from headway.sweeps.checks import check_sweep


@pytest.fixture(scope="module")
def task(labelled_file):
    return {"source": str(labelled_file), "max_length": 48}


@pytest.fixture
def make_job(encoder, classifier, task, runs, make_context):
    def make(**settings):
        context = make_context("taught", runs)
        given = {"model": str(encoder), "task": task, "distill": {"teacher": str(classifier)}} | settings
        config = validate(FinetuneConfig, given)
        job = FinetuningJob(config, encoder, task_folder(config.task, encoder, context))
        return taught_job(job, context)

    return make


def said_by_transformers(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.inference_mode():
        return model(**encoded).logits


@pytest.mark.parametrize("fold", [None, (1, 3)])
def test_each_row_has_what_the_teacher_says_to_it_in_transformers(make_job, classifier, fold):
    job = replace(make_job(precision="fp32"), fold=fold)
    texts = [row[0] for row in job.rows[0].texts]
    seen = 0
    for batch in job.batches()[0].micro_batches(0, 0, 1, 2):
        expected = said_by_transformers(classifier, [texts[row] for row in batch.row_ids.tolist()])
        # The teacher computes in bf16 where that is fast.
        torch.testing.assert_close(batch.taught, expected, rtol=0.05, atol=0.05)
        seen += len(batch.row_ids)
    assert seen == 32


def test_outputs_are_computed_once_for_all_settings_of_the_student(make_job, monkeypatch):
    first = make_job()

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(teaching, "_outputs", computed)
    second = make_job(seed=7, distill=first.config.distill.model_dump() | {"temperature": 5.0})
    assert second.teacher_outputs == first.teacher_outputs


def test_another_teacher_has_outputs_of_its_own(make_job, classifier, encoder, task, runs):
    other = headway.finetune(model=encoder, task=task, steps=1, runs=runs, quiet=True)
    assert make_job(distill={"teacher": str(other.path)}).teacher_outputs != make_job().teacher_outputs


def test_a_student_of_one_layer_learns_its_teacher_s_classes_without_any_label(
    encoder, classifier, labelled_file, task, runs
):
    student = headway.finetune(
        model=encoder,
        task=task,
        layers=1,
        distill={"teacher": str(classifier), "labels": 0.0},
        epochs=30,
        batch_size=16,
        learning_rate=3e-3,
        evaluate_every=1000,
        runs=runs,
        quiet=True,
    )
    texts = [json.loads(line)["text"] for line in labelled_file.read_text().splitlines()]
    classes = [said_by_transformers(folder, texts).argmax(-1) for folder in (student.path, classifier)]
    assert float((classes[0] == classes[1]).float().mean()) > 0.9
    assert "distill" not in json.loads((student.path / "headway_finetune.json").read_text())


def test_a_teacher_with_other_tokens_reads_the_same_texts(make_job, labelled_file, task, tiny_shape, runs):
    other = headway.pretrain(
        str(labelled_file), vocab_size=120, max_length=48, model=tiny_shape, steps=1, runs=runs, quiet=True
    )
    teacher = headway.finetune(model=other, task=task, steps=1, runs=runs, quiet=True)
    job = make_job(distill={"teacher": str(teacher.path)})
    texts = [row[0] for row in job.rows[0].texts]
    [batch] = job.batches()[0].micro_batches(0, 0, 1, 1)
    expected = said_by_transformers(teacher.path, [texts[row] for row in batch.row_ids.tolist()])
    torch.testing.assert_close(batch.taught, expected, rtol=0.05, atol=0.05)


def test_a_teacher_that_was_not_fine_tuned_on_the_task_is_refused(make_job, encoder, pairs, runs, tmp_path):
    with pytest.raises(ConfigError, match=r"has no head for classification with the task's labels; fine-tun"):
        make_job(distill={"teacher": str(encoder)})
    renamed = [(text, f"a {label}") for text, label in pairs]
    other = headway.finetune(renamed, model=encoder, steps=1, runs=runs, quiet=True)
    with pytest.raises(ConfigError, match=r"has no head for classification with the task's labels; fine-tun"):
        make_job(distill={"teacher": str(other.path)})


def test_trials_of_a_sweep_share_one_teacher(classifier, encoder, task, runs, make_context):
    finetune = {"steps": 1, "distill": {"teacher": str(classifier)}}
    settings = {"model": str(encoder), "task": task, "finetune": finetune, "samples": 2}
    config = validate(SweepConfig, settings | {"search": {"distill.temperature": "uniform(1.0, 4.0)"}})
    check_sweep(config)
    job, _ = _sweep_job(config, make_context("sweep", runs))
    assert isinstance(job.base, FinetuningJob)
    trial = job.with_values({"distill.temperature": 3.5})
    assert isinstance(trial.config, FinetuneConfig)
    assert trial.config.distill is not None
    assert trial.config.distill.temperature == 3.5
    [batch] = trial.batches()[0].micro_batches(0, 0, 1, 1)
    assert batch.taught is not None
    assert np.isfinite(batch.taught).all()
    other = validate(SweepConfig, settings | {"search": {"distill.teacher": ["a", "b"]}})
    with pytest.raises(ConfigError, match=r"^search\.distill\.teacher: all trials of a sweep have the same"):
        check_sweep(other)


def test_a_student_learns_hidden_states_and_relations_of_a_teacher_beside_it(encoder, classifier, task, runs):
    distill = {"teacher": str(classifier), "labels": 0.0, "logits": 0.0, "hidden": 1.0, "relations": 1.0}
    student = headway.finetune(
        model=encoder,
        task=task,
        layers=1,
        distill=distill,
        steps=30,
        log_every=1,
        batch_size=16,
        learning_rate=3e-3,
        runs=runs,
        quiet=True,
    )
    entries = [json.loads(line) for line in (student.path.parent / "journal.jsonl").read_text().splitlines()]
    losses = [e["metrics"]["distillation_loss"] for e in entries if "distillation_loss" in e["metrics"]]
    assert losses[-1] < 0.5 * losses[0]
    # Of the teacher and the product of widths nothing is saved.
    names = AutoModelForSequenceClassification.from_pretrained(student.path).state_dict()
    assert not [name for name in names if "distillation" in name or "layer.1." in name]


def test_pretraining_learns_from_a_teacher_s_words(encoder, corpus, tiny_shape, runs):
    student = headway.pretrain(
        corpus=str(corpus.folder),
        objective=["mlm"],
        model=tiny_shape | {"num_hidden_layers": 1, "hidden_size": 16},
        distill={"teacher": str(encoder), "labels": 0.0, "relations": 1.0},
        steps=60,
        log_every=10,
        batch_size=16,
        learning_rate=1e-2,
        evaluate_every=60,
        runs=runs,
        quiet=True,
    )
    metrics = student.metrics
    # The labels had no weight: what it learnt to predict comes from the teacher.
    assert metrics["validation_loss_end"] < 0.8 * metrics["validation_loss_start"]


def test_a_teacher_without_a_head_for_words_or_with_other_words_is_refused(
    classifier, corpus, tiny_shape, labelled_file, runs
):
    given = {"model": tiny_shape, "steps": 1, "objective": ["mlm"], "runs": runs, "quiet": True}
    with pytest.raises(ConfigError, match=r"^distill\.teacher: .* has no head for masked words$"):
        headway.pretrain(corpus=str(corpus.folder), distill={"teacher": str(classifier)}, **given)
    with pytest.raises(ConfigError, match=r"^corpus: it was tokenised with another vocabulary"):
        headway.pretrain(str(labelled_file), vocab_size=120, distill={"teacher": str(classifier)}, **given)


def test_jobs_of_other_steps_say_that_they_learn_from_no_teacher(make_job):
    with pytest.raises(ConfigError, match=r"^distill: only the steps finetune and sweep learn"):
        replace(make_job(), teacher=None).objective()
