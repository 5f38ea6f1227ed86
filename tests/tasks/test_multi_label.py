"""Several labels: balanced weights, and scores of splits that say little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from headway.config.finetune import FinetuneConfig
from headway.data.corpus.tokenizer import load_tokenizer
from headway.tasks.item import Item
from headway.tasks.preparation import prepare_task


@pytest.fixture(scope="module")
def task(corpus, tmp_path_factory):
    """Every training row has the label `always`, half of them `often`, one `seldom`."""
    labels = [["always"] + ["often"] * (i % 2) + ["seldom"] * (i == 0) for i in range(8)]
    items = [
        Item([f"text {i}"], sorted(names), [f"text {i}"], f"row {i}", sorted(names))
        for i, names in enumerate(labels)
    ]
    splits = {"train": items, "validation": items[:2], "test": items[2:4]}
    folder = tmp_path_factory.mktemp("tasks")
    return prepare_task(splits, load_tokenizer(corpus.folder / "tokenizer"), folder, kind="multi-label")


def test_balanced_weights_leave_no_label_out(task, encoder):
    config = FinetuneConfig(model=str(encoder), task=str(task.folder), class_weights="balanced")
    rows = task.split("train")
    weights = task.objective(task.load(encoder, config), config, rows).positive_weights
    found = dict(zip(task.labels, weights.tolist(), strict=True))
    assert found == {"always": 1.0, "often": 1.0, "seldom": 7.0}


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
