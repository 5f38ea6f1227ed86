"""Rows planned once and kept beside their store are those planned in memory, whoever asks."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import numpy as np
import pytest

from headway.data.contents import Contents
from headway.data.corpus.store import TokenStore, open_store, write_store
from headway.data.pretraining import document_ranking, stored_plan
from headway.data.pretraining.document_ranking import ranking
from headway.data.pretraining.row_plan import plan_sentence_rows, plan_token_rows
from headway.data.pretraining.stored_plan import PlanFacts, RowLengths, planned_rows
from headway.pipeline.digest import _MADE_OF_THE_REST

PLANNERS: dict[str, Any] = {"tokens": plan_token_rows, "sentences": plan_sentence_rows}


@pytest.fixture
def store(numbered_store, monkeypatch) -> TokenStore:
    """A store of 40 documents, planned and ranked a few at a time."""
    monkeypatch.setattr(stored_plan, "_SENTENCES_AT_ONCE", 20)
    monkeypatch.setattr(document_ranking, "_DOCUMENTS_AT_ONCE", 7)
    return numbered_store(30)


@pytest.mark.parametrize("budget", [1, 20, 126])
@pytest.mark.parametrize("kind", ["tokens", "sentences"])
def test_stored_rows_are_those_planned_in_memory(kind, budget, store):
    expected = PLANNERS[kind](store, budget)
    rows, facts = planned_rows(store, kind, budget)
    assert rows.num_rows == len(expected.lengths)
    order = np.random.default_rng(0).permutation(rows.num_rows)
    for column, wanted in zip(rows.of(order), expected.of(order), strict=True):
        assert np.array_equal(column, wanted)
    assert np.array_equal(rows.lengths_of(order), expected.lengths[order])
    assert facts == PlanFacts.of(expected, budget)
    lengths = RowLengths(rows, facts.longest, at_most=budget, added=3)
    assert np.array_equal(lengths[np.arange(len(lengths))], np.minimum(expected.lengths, budget) + 3)
    assert lengths.max() == lengths[np.arange(len(lengths))].max()


@pytest.mark.parametrize("kind", ["tokens", "sentences"])
def test_rows_are_planned_once_and_mapped_by_all_who_ask(kind, store, monkeypatch):
    other: Any
    rows, facts = planned_rows(store, kind, 20)

    def fail(*_: object) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr(stored_plan, "_plan", fail)
    again, facts_again = planned_rows(open_store(store.folder), kind, 20)
    assert facts_again == facts
    for other in (again, pickle.loads(pickle.dumps(again))):
        bounds: Any = other._bounds
        while bounds.base is not None and not isinstance(bounds, np.memmap):
            bounds = bounds.base
        assert isinstance(bounds, np.memmap)
        assert np.array_equal(other.of(np.arange(5))[0], rows.of(np.arange(5))[0])
    assert len(pickle.dumps(again)) < 1000


@pytest.mark.parametrize("measure", ["length", "last_sentence"])
def test_a_ranking_is_the_order_of_a_stable_sort(measure, store):
    bounds = store.sentences[store.documents]
    last = bounds[1:] - store.sentences[store.documents[1:] - 1]
    values = np.diff(bounds) if measure == "length" else last
    order = np.argsort(values, kind="stable")
    found = ranking(store, measure)
    assert np.array_equal(found._order, order)
    assert np.array_equal(found._ranks[order], np.arange(len(order)))
    for value in (0, 1, 7, 50, 10_000):
        low, high = found.at_least(np.asarray([value]))
        assert (int(low[0]), int(high[0])) == ((values < value).sum(), len(values))
        low, high = found.at_most(np.asarray([value]))
        assert (int(low[0]), int(high[0])) == (0, (values <= value).sum())
    assert len(pickle.dumps(found)) < 1000


def test_plans_do_not_change_what_a_corpus_holds(store, tmp_path):
    def digest() -> str:
        return Contents(tmp_path / "memory.json", _MADE_OF_THE_REST).of(store.folder)

    before = digest()
    planned_rows(store, "tokens", 20)
    ranking(store, "length")
    assert (store.folder / "rows").is_dir()
    assert digest() == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_store_that_cannot_be_written_to_is_planned_in_memory(number, store, monkeypatch):
    def refuse(folder: object) -> None:
        raise OSError(number, "cannot be written to", str(folder))

    for module in (stored_plan, document_ranking):
        monkeypatch.setattr(module, "atomic_folder", refuse)
    rows, _ = planned_rows(store, "tokens", 20)
    assert rows.num_rows == len(plan_token_rows(store, 20).lengths)
    assert len(ranking(store, "length")._order) == store.num_documents


def test_a_full_disk_is_told(store, monkeypatch):
    def fail(folder: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(stored_plan, "atomic_folder", fail)
    with pytest.raises(OSError, match="no space left"):
        planned_rows(store, "tokens", 20)


def test_a_store_in_memory_is_planned_there(store):
    alone = TokenStore(store.tokens, store.sentences, store.documents)
    rows, facts = planned_rows(alone, "sentences", 20)
    assert facts.rows == rows.num_rows == planned_rows(store, "sentences", 20)[0].num_rows
    assert np.array_equal(ranking(alone, "length")._order, ranking(store, "length")._order)


def test_an_empty_store_has_no_rows(tmp_path):
    write_store(tmp_path / "s", [])
    for kind in ("tokens", "sentences"):
        assert planned_rows(open_store(tmp_path / "s"), kind, 20)[0].num_rows == 0
