"""The step `evaluate`: scores beside honest baselines."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sklearn.metrics import accuracy_score, confusion_matrix
from transformers import AutoModelForSequenceClassification

from headway.config.base import ConfigError
from headway.config.evaluate import EvaluateConfig
from headway.config.finetune import FinetuneConfig
from headway.config.tasks import ClassificationTask
from headway.inference.predictor import Predictor
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.runs.held_out import score_model
from headway.steps.evaluate import run_evaluate
from headway.tasks.preparation import read_task
from headway.tasks.task import open_task
from headway.tracking import tracking_uri


@pytest.fixture(scope="module")
def task(labelled_file) -> ClassificationTask:
    return ClassificationTask(source=str(labelled_file), max_length=48)


def test_scores_are_those_of_the_model_on_the_held_out_texts(classifier, task, make_context, runs):
    config = EvaluateConfig(model=str(classifier), task=task)
    summary = run_evaluate(config, make_context("evaluate-alone", runs)).summary
    test = read_task(task)["test"]
    answers = [answer["label"] for answer in Predictor(classifier).rows([item.texts[0] for item in test])]
    truth = [item.target for item in test]
    assert summary["accuracy"] == pytest.approx(accuracy_score(truth, answers))
    assert summary["confusion_matrix"] == confusion_matrix(truth, answers, labels=summary["labels"]).tolist()
    assert summary["texts"] == len(test)
    assert "accuracy_tfidf" not in summary


def test_another_model_is_scored_on_the_same_texts(classifier, task, make_context, runs):
    config = EvaluateConfig(model=str(classifier), beside={"as it came": str(classifier)}, task=task)
    result = run_evaluate(config, make_context("evaluate-beside", runs))
    assert result.summary["beside"]["as it came"]["accuracy"] == result.summary["accuracy"]
    assert f"as it came {result.summary['accuracy']:.4f}" in result.headline


def test_on_a_cluster_that_is_joined_models_are_scored_on_its_nodes(
    classifier, task, make_context, runs, ray_cluster, monkeypatch
):
    """The driver may run on a head without GPUs; here it could not score at all."""
    monkeypatch.setattr("headway.runs.held_out.score_model", None)
    config = EvaluateConfig(model=str(classifier), beside={"as it came": str(classifier)}, task=task)
    context = replace(make_context("evaluate-joined", runs), address="joined-already:6379")
    summary = run_evaluate(config, context).summary
    assert summary["beside"]["as it came"]["accuracy"] == summary["accuracy"]


def with_another_vocabulary(classifier: Path, folder: Path) -> str:
    """The same model, whose words have other numbers: each one that of the word before it."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    shutil.copytree(classifier, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = [word for word, index in content["model"]["vocab"].items() if index >= 5]
    old = [content["model"]["vocab"][word] for word in words]
    new = old[1:] + old[:1]
    content["model"]["vocab"] |= dict(zip(words, new, strict=True))
    file.write_text(json.dumps(content))
    (folder / "vocab.txt").unlink(missing_ok=True)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[new] = rows[old].clone()
    model.save_pretrained(folder)
    return str(folder)


def test_a_model_with_another_vocabulary_is_scored_on_its_own_tokens(
    classifier, task, make_context, runs, tmp_path
):
    other = with_another_vocabulary(classifier, tmp_path / "other")
    config = EvaluateConfig(model=str(classifier), beside={"other": other}, task=task)
    summary = run_evaluate(config, make_context("evaluate-vocabulary", runs)).summary
    assert summary["accuracy"] > 0.6
    assert summary["beside"]["other"]["accuracy"] == summary["accuracy"]


def test_a_task_that_was_prepared_with_another_vocabulary_is_refused(
    classifier, task, make_context, runs, tmp_path
):
    other = Path(with_another_vocabulary(classifier, tmp_path / "other"))
    context = make_context("evaluate-refused", runs)
    prepared = open_task(task_folder(task, classifier, context))
    with pytest.raises(ConfigError, match="was prepared with another vocabulary than that of the model"):
        score_model(other, prepared)
    config = FinetuneConfig(model=str(other), task=str(prepared.folder))
    with pytest.raises(ConfigError, match="was prepared with another vocabulary than that of the model"):
        FinetuningJob(config, other, prepared.folder).batches()


def test_baselines_and_few_labels_are_computed_in_the_same_run(
    classifier, encoder, task, make_context, runs, ray_cluster
):
    config = EvaluateConfig.model_validate(
        {
            "model": str(classifier),
            "encoder": str(encoder),
            "task": task.model_dump(),
            "few_labels": [3],
            "seeds": 2,
            "finetune": {"steps": 4, "batch_size": 8},
        }
    )
    summary = run_evaluate(config, make_context("evaluate-all", runs)).summary
    # The texts' words give their class away; whoever counts words knows it.
    assert summary["accuracy_tfidf"] == 1.0
    # Accuracies are counts of right texts.
    for accuracy in (summary["accuracy"], summary["accuracy_random_init"]):
        right = accuracy * summary["texts"]
        assert right == pytest.approx(round(right))
    for name in ("pretrained", "random_init", "tfidf"):
        row = summary["few_labels"]["3"][name]
        assert len(row["seeds"]) == 2
        assert row["mean"] == pytest.approx(statistics.fmean(row["seeds"]))
        assert row["std"] == pytest.approx(np.std(row["seeds"], ddof=1))
    client = MlflowClient(tracking_uri(runs))
    [run] = client.search_runs(
        [client.get_experiment_by_name("test").experiment_id], "attributes.run_name = 'evaluate-all'"
    )
    assert run.data.metrics["accuracy_tfidf"] == 1.0
    assert run.data.metrics["accuracy"] == pytest.approx(summary["accuracy"])
