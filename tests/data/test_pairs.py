"""Rows of neighbouring sentences, and pairs for next-sentence prediction."""

from __future__ import annotations

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.data.pairs import IS_NEXT, IS_RANDOM, check_pairable, plan_rows, sentence_pair
from headway.data.sampling import random_generator
from headway.data.store import TokenStore, open_store, write_store

BUDGET = 20


@pytest.fixture
def store(tmp_path) -> TokenStore:
    """40 documents of 1 to 12 sentences; a token's value says its place in the whole store."""
    rng = np.random.default_rng(0)
    place, documents = 0, []
    for _ in range(40):
        sentences = []
        for _ in range(int(rng.integers(1, 13))):
            length = int(rng.integers(1, 12))
            sentences.append(np.arange(place, place + length, dtype=np.int32))
            place += length
        documents.append(sentences)
    write_store(tmp_path / "store", documents)
    return open_store(tmp_path / "store")


def test_rows_cover_every_sentence_once_and_keep_to_their_document(store):
    rows = plan_rows(store, BUDGET)
    assert rows.first[0] == 0
    assert rows.last[-1] == store.num_sentences
    assert np.array_equal(rows.first[1:], rows.last[:-1])
    for first, last, document in zip(rows.first, rows.last, rows.document, strict=True):
        assert store.documents[document] <= first < last <= store.documents[document + 1]
    assert np.array_equal(rows.lengths, store.sentences[rows.last] - store.sentences[rows.first])


def test_a_row_is_full_unless_its_document_ends(store):
    rows = plan_rows(store, BUDGET)
    for last, document, length in zip(rows.last, rows.document, rows.lengths, strict=True):
        assert length >= BUDGET or last == store.documents[document + 1]


def document_of(store: TokenStore, token: int) -> int:
    sentence = np.searchsorted(store.sentences, token, side="right") - 1
    return int(np.searchsorted(store.documents, sentence, side="right") - 1)


def test_b_follows_a_or_comes_from_another_document_half_and_half(store):
    rows = plan_rows(store, BUDGET)
    labels = []
    for row in range(len(rows.first)):
        for seed in range(20):
            a, b, label = sentence_pair(store, rows, row, BUDGET, random_generator(seed, row))
            assert len(a) >= 1
            assert len(b) >= 1
            assert len(a) + len(b) <= BUDGET
            assert document_of(store, a[0]) == document_of(store, a[-1]) == rows.document[row]
            assert (document_of(store, b[0]) == rows.document[row]) == (label == IS_NEXT)
            if label == IS_NEXT:
                assert a[-1] < b[0]
            several = rows.last[row] - rows.first[row] > 1
            assert several or label == IS_RANDOM
            labels += [label] * int(several)
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / len(labels) ** 0.5


def test_segments_are_runs_of_their_text(store):
    rows = plan_rows(store, BUDGET)
    for row in range(len(rows.first)):
        for segment in sentence_pair(store, rows, row, BUDGET, random_generator(row))[:2]:
            assert np.array_equal(np.diff(segment), np.ones(len(segment) - 1))


def test_a_single_document_cannot_be_paired(tmp_path):
    write_store(tmp_path / "s", [[np.asarray([1, 2], np.int32)]])
    with pytest.raises(ConfigError, match="nsp needs at least two documents"):
        check_pairable(open_store(tmp_path / "s"))
