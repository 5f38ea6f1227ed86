"""Where answers are in windows, against transformers' recipe; questions without one; the scores of both."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.description import describe
from headway.tasks.item import SPLITS, Item
from headway.tasks.preparation import check_splits, prepare_task
from headway.tasks.task import task_class

LENGTH, STRIDE = 32, 8
WORDS = ["boat", "mast", "rose", "hedge", "soup", "bread", "old", "small", "sailor", "cooks", "seventeen"]
MARKS = ["", "", "", ",", ".", ";", "!"]


def question(number: int, rng: random.Random, answer: tuple[int, int] | None) -> Item:
    """A question about a passage whose words stand in brackets and quotes, or before a mark."""
    words = [f'({rng.choice(WORDS)}"{rng.choice(WORDS)}"){rng.choice(MARKS)}' for _ in range(18)]
    passage = f"{number} " + " ".join(words)
    target: dict[str, Any] = {"texts": [], "starts": []}
    if answer is not None:
        at, length = answer
        inside = passage.index(words[at]) + 1  # after the bracket
        target = {"texts": [passage[inside : inside + length]], "starts": [inside]}
    return Item((f"Who {rng.choice(WORDS)} {number}?", passage), target, [passage], f"row {number}")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 5, vocab_size=120, lowercase=True, max_length=LENGTH)


def prepared(splits: dict[str, list[Item]], tokenizer: Any, folder: Path) -> Any:
    settings = {"stride": STRIDE, "max_answer_length": 12}
    kind = "question-answering"
    return prepare_task(splits, tokenizer, folder, kind=kind, max_length=LENGTH, settings=settings)


@pytest.fixture(scope="module")
def task(tokenizer, tmp_path_factory):
    """Answers of a few characters to a few words; every fourth question has none."""
    rng = random.Random(0)
    rows = []
    for number in range(60):
        answer = (rng.randrange(18), rng.randrange(3, 9)) if number % 4 else None
        rows.append(question(number, rng, answer))
    splits = {"train": rows, "validation": rows[:8], "test": rows[:8]}
    return prepared(splits, tokenizer, tmp_path_factory.mktemp("tasks"))


def features(tokenizer, rows) -> list[tuple[int, tuple[int, int]]]:
    """The question of each window and its answer's tokens, as transformers' `run_qa.py` finds them."""
    encoded = tokenizer(
        *(list(column) for column in zip(*rows.texts, strict=True)),
        truncation="only_second",
        max_length=LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for number, offsets in enumerate(encoded["offset_mapping"]):
        row = encoded["overflow_to_sample_mapping"][number]
        target = rows.targets[row]
        parts = encoded.sequence_ids(number)
        first = parts.index(1)
        last = len(parts) - 1 - parts[::-1].index(1)
        if not target["texts"]:
            found.append((row, (0, 0)))
            continue
        begin = target["starts"][0]
        end = begin + len(target["texts"][0])
        if offsets[first][0] > begin or offsets[last][1] < end:
            found.append((row, (0, 0)))
            continue
        stop = last + 1  # the recipe itself would run into [SEP]
        while first < stop and offsets[first][0] <= begin:
            first += 1
        while offsets[last][1] >= end:
            last -= 1
        found.append((row, (first - 1, last + 1)))
    return found


def test_windows_hold_the_answers_that_transformers_finds_in_them(task, tokenizer):
    rows = task.split("train")
    batches = task.batches(rows, tokenizer, batch_size=4)
    expected = features(tokenizer, rows)
    assert [(window.row, window.answer) for window in batches.windows] == expected
    in_several = [row for row, answer in expected if answer != (0, 0)]
    assert len(in_several) > len(set(in_several)), "an answer where windows overlap is learnt in both"


def test_a_question_without_an_answer_is_answered_by_the_first_token_of_every_window(task, tokenizer):
    rows = task.split("train").take([0, 4, 8])
    batches = task.batches(rows, tokenizer, batch_size=4)
    assert {window.answer for window in batches.windows} == {(0, 0)}
    labels = [label for batch in batches.in_order(0, 1, 2) for label in batch.labels.tolist()]
    assert len(labels) > 3 and labels == [[0, 0]] * len(labels)


def outputs_for(task, tokenizer, rows, spans):
    """Scores by which the answer to each row is the span of these passage tokens; none for None."""
    batches = task.batches(rows, tokenizer, batch_size=4)
    outputs = []
    for window, length in zip(batches.windows, batches.lengths, strict=True):
        scores = np.zeros((length, 2), np.float32)
        span = spans[window.row]
        scores[0] = 5.0 if span is None else 1.0
        if span is not None and window.start <= span[0] and span[1] < window.stop:
            shift = batches.offset(window.row) - window.start
            scores[span[0] + shift, 0] = scores[span[1] + shift, 1] = 9.0
        outputs.append(scores)
    return outputs, batches


def test_scores_count_an_answer_left_out_and_one_invented(tokenizer, tmp_path):
    """Right; left out; a word too many; rightly left out; invented."""
    rng = random.Random(1)
    passages = ["the old boat sails", "the rose", "the small hedge grows", "soup", "bread and soup"]
    answers = ["old boat", "rose", "hedge", None, None]
    items = [
        Item(
            (f"Which {i} {rng.choice(WORDS)}?", passage),
            {"texts": [], "starts": []}
            if answer is None
            else {"texts": [answer], "starts": [passage.index(answer)]},
            [passage],
            f"row {i}",
        )
        for i, (passage, answer) in enumerate(zip(passages, answers, strict=True))
    ]
    splits = dict.fromkeys(SPLITS, items)
    small = prepared(splits, tokenizer, tmp_path)
    rows = small.split("test")

    def tokens(row: int, text: str) -> tuple[int, int]:
        encoded = tokenizer(passages[row], add_special_tokens=False)
        begin = passages[row].index(text)
        return encoded.char_to_token(begin), encoded.char_to_token(begin + len(text) - 1)

    spans = [tokens(0, "old boat"), None, tokens(2, "small hedge"), None, tokens(4, "soup")]
    outputs, batches = outputs_for(small, tokenizer, rows, spans)
    assert small.answers(rows, outputs, batches) == ["old boat", "", "small hedge", "", "soup"]
    scores = small.scores(rows, outputs, batches)
    assert scores["exact_match"] == pytest.approx(2 / 5)
    assert scores["f1"] == pytest.approx((1 + 0 + 2 / 3 + 1 + 0) / 5)


def test_an_answer_is_always_given_if_every_training_question_has_one(task, tokenizer, tmp_path):
    """The rows that are scored do not decide what a model may say."""
    rows = [question(n, random.Random(n), (n, 4) if n < 8 else None) for n in range(16)]
    splits = {"train": rows[:8], "validation": rows, "test": rows}
    other = prepared(splits, tokenizer, tmp_path)
    test = other.split("test")
    for one, may_be_empty in ((other, False), (task, True)):
        outputs, batches = outputs_for(one, tokenizer, test, [None] * len(test))
        assert one.answer_settings.may_be_empty == may_be_empty
        assert [not answer for answer in one.answers(test, outputs, batches)] == [may_be_empty] * len(test)


def test_training_questions_without_any_answer_are_refused():
    rows = [question(number, random.Random(0), None) for number in range(3)]
    with pytest.raises(ConfigError, match="task: no training question has an answer"):
        check_splits(task_class("question-answering"), dict.fromkeys(SPLITS, rows), "rows")


def test_how_answers_are_decoded_is_kept_with_the_model(task, encoder, tmp_path):
    config = validate(FinetuneConfig, {"model": str(encoder), "task": str(task.folder)})
    task.save(task.load(encoder, config), encoder, tmp_path / "model")
    assert describe(tmp_path / "model").answers == task.answer_settings
