"""The scores of answers, on cases that the evaluation script of SQuAD tells apart."""

from __future__ import annotations

import pytest

from headway.tasks.squad import exact_match, token_f1


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
