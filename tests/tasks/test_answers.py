"""Spans and the scores of answers, on the cases that SQuAD's own evaluation script tells apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headway.tasks.answers import best_span, exact_match, token_f1


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("the Eiffel Tower!", ["Eiffel tower"], 1.0, 1.0),
        ("tower", ["Eiffel tower"], 0.0, 2 / 3),
        ("Paris, France", ["Lyon", "Paris"], 0.0, 2 / 3),
        ("a an the", ["..."], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("Paris", [], 0.0, 0.0),
        ("", ["Paris"], 0.0, 0.0),
        ("one one two", ["one two two"], 0.0, 2 / 3),
    ],
)
def test_scores_of_an_answer(answer, truths, exact, f1):
    assert exact_match(answer, truths) == exact
    assert token_f1(answer, truths) == pytest.approx(f1)


def test_the_best_span_is_that_of_a_search_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.normal(size=(15, 2)).astype(np.float32)
        spans = [(i, j) for i, j in itertools.product(range(3, 12), repeat=2) if i <= j < i + 4]
        expected = max(spans, key=lambda span: scores[span[0], 0] + scores[span[1], 1])
        found = best_span(scores, 3, 12, 4)
        assert found is not None
        assert (found.first, found.last) == expected


def test_no_token_no_span():
    assert best_span(np.zeros((4, 2), np.float32), 2, 2, 5) is None
