"""The decoder of answers against a search of all spans."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from headway.inference.answers import AnswerSettings, ScoredWindow, best_answers
from headway.inference.description import describe

CONTEXT = "abcdefghijklmnopqrst"
"""Of 20 tokens, a character each."""


def window(rng, first, stop, start=3):
    """A window over characters `first` to `stop`, behind `start` tokens of the question, with scores."""
    offsets = np.stack([np.arange(first, stop), np.arange(first, stop) + 1], axis=1)
    scores = rng.normal(0.0, 3.0, (start + len(offsets) + 1, 2)).astype(np.float32)
    return ScoredWindow(scores, start, offsets)


def searched(windows, max_length):
    """(score, start, end) of every span, and the logarithm that turns scores into probabilities."""
    spans, firsts, lasts = [], [], []
    for scores, start, offsets in windows:
        inside = scores[start : start + len(offsets)].astype(np.float64)
        firsts += inside[:, 0].tolist()
        lasts += inside[:, 1].tolist()
        for i, j in itertools.product(range(len(offsets)), repeat=2):
            if i <= j < i + max_length:
                spans.append((inside[i, 0] + inside[j, 1], int(offsets[i, 0]), int(offsets[j, 1])))
    return sorted(spans, reverse=True), np.log(np.exp(firsts).sum()) + np.log(np.exp(lasts).sum())


@pytest.mark.parametrize("max_length", [1, 4, 50])
def test_answers_are_those_of_a_search_of_all_spans(max_length):
    rng = np.random.default_rng(max_length)
    for _ in range(25):
        windows = [window(rng, 0, 12), window(rng, 8, 20)]
        spans, log_total = searched(windows, max_length)
        expected: list[tuple[float, int, int]] = []
        for score, start, end in spans:
            if len(expected) < 5 and all(end <= s or start >= e for _, s, e in expected):
                expected.append((score, start, end))
        answers = best_answers(CONTEXT, windows, AnswerSettings(max_length), 5)
        assert [(span.start, span.end) for span in answers] == [(s, e) for _, s, e in expected]
        assert [span.text for span in answers] == [CONTEXT[s:e] for _, s, e in expected]
        assert [span.score for span in answers] == pytest.approx(
            [np.exp(s - log_total) for s, *_ in expected]
        )


def test_a_window_without_the_answer_does_not_outvote_one_with_it():
    """Each window's own softmax would give the second one's only token a probability of 1."""
    sure = ScoredWindow(np.asarray([[0, 0], [9, 9], [8, 0]], np.float32), 1, np.asarray([[0, 1], [1, 2]]))
    unsure = ScoredWindow(np.asarray([[0, 0], [1, 1]], np.float32), 1, np.asarray([[5, 6]]))
    assert best_answers(CONTEXT, [unsure, sure], AnswerSettings())[0].text == "a"


def test_no_answer_competes_only_if_the_task_has_questions_without():
    scores = np.asarray([[3.0, 3.0], [0.0, 0.0], [2.0, 0.0], [0.0, 2.5]], np.float32)
    windows = [ScoredWindow(scores, 2, np.asarray([[0, 1], [1, 2]]))]
    assert [span.text for span in best_answers(CONTEXT, windows, AnswerSettings(), 2)] == ["ab"]
    none, other = best_answers(CONTEXT, windows, AnswerSettings(may_be_empty=True), 2)
    assert (none.text, none.start, none.end, other.text) == ("", 0, 0, "ab")
    first = np.exp([3.0, 2.0, 0.0])
    last = np.exp([3.0, 0.0, 2.5])
    assert none.score == pytest.approx(first[0] / first.sum() * last[0] / last.sum())
    assert other.score == pytest.approx(first[1] / first.sum() * last[2] / last.sum())


def test_no_answer_takes_the_window_that_is_least_sure_of_it():
    def of(null: float, best: float) -> ScoredWindow:
        return ScoredWindow(np.full((2, 2), (null, null)) * [[1], [best / null]], 1, np.asarray([[0, 1]]))

    settings = AnswerSettings(may_be_empty=True)
    assert best_answers(CONTEXT, [of(9.0, 1.0), of(4.0, 5.0)], settings)[0].text == "a"
    assert best_answers(CONTEXT, [of(9.0, 1.0), of(6.0, 5.0)], settings)[0].text == ""


def test_a_model_that_scores_all_tokens_alike_gives_no_answer_if_it_may():
    alike = ScoredWindow(np.ones((4, 2), np.float32), 2, np.asarray([[0, 1], [1, 2]]))
    assert best_answers(CONTEXT, [alike], AnswerSettings(may_be_empty=True))[0].text == ""
    assert best_answers(CONTEXT, [alike], AnswerSettings())[0].text == "a"


def test_a_window_without_context_has_no_answer():
    nothing = ScoredWindow(np.zeros((4, 2), np.float32), 0, np.empty((0, 2), np.int64))
    assert best_answers("", [nothing], AnswerSettings()) == []
    assert best_answers("", [nothing], AnswerSettings(may_be_empty=True))[0].text == ""
    assert best_answers("", [], AnswerSettings()) == []


def test_settings_travel_in_the_models_configuration(tmp_path):
    settings = AnswerSettings(max_answer_length=7, may_be_empty=True)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(shape | settings.for_config()))
    assert describe(tmp_path).answers == settings
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert describe(tmp_path).answers == AnswerSettings(max_answer_length=30, may_be_empty=False)
