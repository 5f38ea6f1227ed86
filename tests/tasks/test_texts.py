"""Balanced weights, against scikit-learn's, and in the losses that they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import load_tokenizer
from headway.tasks.item import Item
from headway.tasks.preparation import prepare_task
from headway.tasks.texts import balanced_weights

LABELS = ["rare"] * 2 + ["often"] * 7 + ["always"] * 11


@pytest.mark.parametrize("counts", [[1, 1], [2, 7, 11], [500, 1, 3, 40]])
def test_balanced_weights_are_those_of_scikit_learn(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    weights = balanced_weights(np.asarray(counts))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0)


def test_a_class_without_rows_has_a_finite_weight():
    """As may be in a fold; the others' weights are as if it had none."""
    assert balanced_weights(np.asarray([0, 4, 2])).tolist() == [2.0, 0.5, 1.0]


def objective(kind: str, items: list[Item], encoder: Any, folder: Any, **settings: Any) -> Any:
    splits = dict.fromkeys(("train", "validation", "test"), items)
    task = prepare_task(splits, load_tokenizer(encoder), folder, kind=kind, max_length=32)
    config = validate(FinetuneConfig, {"model": str(encoder), "task": str(task.folder)} | settings)
    return task.labels, task.objective(task.load(encoder, config), config, task.split("train"))


@pytest.fixture
def items() -> dict[str, list[Item]]:
    """By kind of task: texts with one label each, and two sentences of ten words."""
    texts = [f"text {i}" for i in range(len(LABELS))]
    halves = (LABELS[:10], LABELS[10:])
    return {
        "classification": [
            Item([text], label, [text], text, [label]) for text, label in zip(texts, LABELS, strict=True)
        ],
        "tokens": [
            Item([f"w{i}" for i in range(10)], half, [f"half {n}"], "row") for n, half in enumerate(halves)
        ],
    }


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_class_weights_are_those_of_the_rows_that_are_trained_on(kind, items, encoder, tmp_path):
    labels, balanced = objective(kind, items[kind], encoder, tmp_path, class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.asarray(labels), y=np.asarray(LABELS))
    np.testing.assert_allclose(balanced.class_weights.numpy(), expected, rtol=1e-6)
    _, plain = objective(kind, items[kind], encoder, tmp_path)
    assert plain.class_weights is None
