"""Pairs that multiple negatives learns from, of those that have scores."""

from __future__ import annotations

import pytest

from headway.config.base import ConfigError
from headway.config.loading import validate
from headway.config.tasks import EmbeddingTask
from headway.data.corpus.tokenizer import load_tokenizer
from headway.tasks.item import Item
from headway.tasks.preparation import prepare_task, settings_of

SCORES = [0.0, 0.5, 1.0, 0.49, 0.51, 0.9]


@pytest.fixture
def task_of(corpus, tmp_path):
    def prepare(**settings):
        config = validate(EmbeddingTask, {"source": "rows", "score_column": "score"} | settings)
        items = [
            Item((f"text {i}", f"other {i}"), score, [f"text {i}"], f"row {i}")
            for i, score in enumerate(SCORES)
        ]
        splits = dict.fromkeys(("train", "validation", "test"), items)
        tokenizer = load_tokenizer(corpus.folder / "tokenizer")
        return prepare_task(splits, tokenizer, tmp_path, kind="embeddings", settings=settings_of(config))

    return prepare


@pytest.mark.parametrize(
    ("min_score", "kept"), [(None, SCORES), (0.5, [0.5, 1.0, 0.51, 0.9]), (0.0, SCORES), (1.0, [1.0])]
)
def test_multiple_negatives_learns_from_pairs_with_at_least_the_lowest_score(min_score, kept, task_of):
    task = task_of(min_score=min_score)
    rows = task.split("train")
    assert task.trained_on(rows).targets == kept
    assert task.trained_on(rows).texts == [
        texts for texts, score in zip(rows.texts, SCORES, strict=True) if score in kept
    ]


def test_a_lowest_score_that_no_pair_has_is_refused(task_of):
    task = task_of(min_score=1.5)
    with pytest.raises(ConfigError, match=r"no training pair has a score of at least 1\.5$"):
        task.trained_on(task.split("train"))


def test_pairs_of_every_score_are_learned_by_their_cosine(task_of):
    task = task_of(loss="cosine")
    assert task.trained_on(task.split("train")).targets == SCORES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_score": 0.5}, "loss cosine and min_score need a score_column"),
        (
            {"min_score": 0.5, "score_column": "score", "loss": "cosine"},
            "min_score does nothing with loss cosine, which trains on all pairs",
        ),
    ],
)
def test_a_lowest_score_that_would_do_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(EmbeddingTask, {"source": "rows"} | settings)
