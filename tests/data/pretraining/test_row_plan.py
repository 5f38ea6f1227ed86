"""Documents cut into rows: every token once, whole sentences while they fit."""

from __future__ import annotations

import numpy as np
import pytest

from headway.data.corpus.store import TokenStore, open_store, write_store
from headway.data.pretraining.row_plan import plan_sentence_rows, plan_token_rows

BUDGET = 20


@pytest.fixture
def store(numbered_store) -> TokenStore:
    return numbered_store(11)


def looped_token_rows(store: TokenStore, budget: int) -> list[tuple[int, int]]:
    """The rule, sentence by sentence."""
    rows: list[tuple[int, int]] = []
    for document in range(store.num_documents):
        pieces: list[int] = []
        for sentence in range(store.documents[document], store.documents[document + 1]):
            left = int(store.sentences[sentence + 1] - store.sentences[sentence])
            while left > 0:
                pieces.append(min(left, budget))
                left -= budget
        start = int(store.sentences[store.documents[document]])
        length = 0
        for piece in pieces:
            if length + piece > budget:
                rows.append((start, length))
                start, length = start + length, 0
            length += piece
        rows.append((start, length))
    return rows


@pytest.mark.parametrize("longest", [11, 300])
@pytest.mark.parametrize("budget", [1, 7, 20, 126])
def test_each_token_lies_in_exactly_one_row_however_long_its_sentence(longest, budget, numbered_store):
    store = numbered_store(longest)
    rows = plan_token_rows(store, budget)
    held = [store.tokens[start : start + length] for start, length in zip(*rows, strict=True)]
    assert np.concatenate(held).tolist() == list(range(len(store.tokens)))
    assert rows.lengths.min() >= 1
    assert rows.lengths.max() <= budget
    assert list(zip(*(column.tolist() for column in rows), strict=True)) == looped_token_rows(store, budget)


def test_rows_of_tokens_keep_to_their_document_and_end_with_a_sentence_if_one_fits(store):
    rows = plan_token_rows(store, BUDGET)
    bounds = store.sentences[store.documents]
    ends = rows.starts + rows.lengths
    assert np.array_equal(
        np.searchsorted(bounds, rows.starts, "right"), np.searchsorted(bounds, ends, "left")
    )
    assert np.isin(ends, store.sentences).all()  # no sentence here is longer than the budget


def test_rows_of_an_empty_store_are_none(tmp_path):
    write_store(tmp_path / "s", [])
    assert len(plan_token_rows(open_store(tmp_path / "s"), BUDGET).starts) == 0


def test_rows_cover_every_sentence_once_and_keep_to_their_document(store):
    rows = plan_sentence_rows(store, BUDGET)
    assert rows.first[0] == 0
    assert rows.last[-1] == store.num_sentences
    assert np.array_equal(rows.first[1:], rows.last[:-1])
    for first, last, document in zip(rows.first, rows.last, rows.document, strict=True):
        assert store.documents[document] <= first < last <= store.documents[document + 1]
    assert np.array_equal(rows.lengths, store.sentences[rows.last] - store.sentences[rows.first])


def test_a_row_is_full_unless_its_document_ends_and_has_no_sentence_too_many(store):
    rows = plan_sentence_rows(store, BUDGET)
    for last, document, length in zip(rows.last, rows.document, rows.lengths, strict=True):
        assert length >= BUDGET or last == store.documents[document + 1]
        assert length - (store.sentences[last] - store.sentences[last - 1]) < BUDGET
