"""Several labels: balanced weights, and scores of splits that say little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from headway.config.finetune import FinetuneConfig
from headway.data.corpus.tokenizer import load_tokenizer
from headway.inference.predictor import Predictor
from headway.tasks.item import Item
from headway.tasks.preparation import prepare_task


def task_with(tokenizer, folder, **settings):
    """Every training row has the label `always`, half of them `often`, one `seldom`."""
    labels = [["always"] + ["often"] * (i % 2) + ["seldom"] * (i == 0) for i in range(8)]
    items = [
        Item([f"text {i}"], sorted(names), [f"text {i}"], f"row {i}", sorted(names))
        for i, names in enumerate(labels)
    ]
    splits = {"train": items, "validation": items[:2], "test": items[2:4]}
    return prepare_task(splits, tokenizer, folder, kind="multi-label", settings=settings)


@pytest.fixture(scope="module")
def task(corpus, tmp_path_factory):
    return task_with(load_tokenizer(corpus.folder / "tokenizer"), tmp_path_factory.mktemp("tasks"))


def test_balanced_weights_leave_no_label_out(task, encoder):
    config = FinetuneConfig(model=str(encoder), task=str(task.folder), class_weights="balanced")
    rows = task.split("train")
    weights = task.objective(task.load(encoder, config), config, rows).positive_weights
    found = dict(zip(task.labels, weights.tolist(), strict=True))
    assert found == {"always": 1.0, "often": 1.0, "seldom": 7.0}


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_scores_are_scikit_learns_of_probabilities_at_the_threshold(threshold, corpus, tmp_path):
    task = task_with(load_tokenizer(corpus.folder / "tokenizer"), tmp_path, threshold=threshold)
    rows = task.split("train")
    probabilities = np.random.default_rng(0).random((len(rows), 3))
    truth, predicted = task.label_array(rows), probabilities >= threshold
    found = task.scores(rows, list(logit(probabilities)), None)
    assert found["micro_f1"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(truth, predicted))


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_a_model_predicts_the_labels_that_its_scores_were_measured_by(threshold, encoder, tmp_path):
    """The threshold goes with the model."""
    task = task_with(load_tokenizer(encoder), tmp_path / "tasks", threshold=threshold)
    config = FinetuneConfig(model=str(encoder), task=str(task.folder))
    task.save(task.load(encoder, config), encoder, tmp_path / "model")
    texts = [texts[0] for texts in task.split("train").texts]
    rows = Predictor(tmp_path / "model").rows(texts)
    probabilities = np.asarray([[row["scores"][label] for label in task.labels] for row in rows])
    assert probabilities.min() > 0.1 and probabilities.max() < 0.9, "a head that has learnt nothing"
    assert [row["labels"] for row in rows] == [task.labels if threshold == 0.1 else []] * len(rows)


def test_rows_without_any_label_have_no_precision_and_do_not_crash(task):
    rows = task.split("train").take([0, 1])
    rows.targets[:] = [[], []]
    found = task.scores(rows, [np.zeros(3, np.float32) - 1.0] * 2, None)
    assert math.isnan(found["mean_average_precision"])
    assert found["subset_accuracy"] == 1.0


def test_outputs_that_are_not_numbers_rank_last(task):
    rows = task.split("train").take([0, 1])
    outputs = [np.asarray([math.nan, 0.0, 0.0]), np.asarray([0.0, 1.0, 0.5])]
    truth = task.label_array(rows)
    expected = np.mean(
        [
            average_precision_score(truth[:, column], np.nan_to_num([row[column] for row in outputs], nan=-9))
            for column in range(3)
        ]
    )
    assert task.scores(rows, outputs, None)["mean_average_precision"] == pytest.approx(expected)
