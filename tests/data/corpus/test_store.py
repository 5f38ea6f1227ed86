"""The token store gives back what was written."""

from __future__ import annotations

import numpy as np

from headway.data.corpus.store import open_store, write_store


def test_tokens_sentences_and_documents_come_back(tmp_path):
    documents = [[[1, 2], [3]], [[4, 5, 6]], [[7], [8, 9]]]
    write_store(tmp_path / "s", ([np.asarray(s, np.int32) for s in d] for d in documents))
    store = open_store(tmp_path / "s")
    assert (store.num_documents, store.num_sentences) == (3, 5)
    actual = [
        [store.span(s, s + 1).tolist() for s in range(store.documents[d], store.documents[d + 1])]
        for d in range(3)
    ]
    assert actual == documents
    assert store.span(1, 4).tolist() == [3, 4, 5, 6, 7]


def test_the_example_of_the_format_is_true(tmp_path):
    documents = [[[5, 6], [7]], [[8]]]
    write_store(tmp_path / "s", ([np.asarray(s, np.int32) for s in d] for d in documents))
    assert np.fromfile(tmp_path / "s" / "tokens.bin", np.int32).tolist() == [5, 6, 7, 8]
    assert np.load(tmp_path / "s" / "sentences.npy").tolist() == [0, 2, 3, 4]
    assert np.load(tmp_path / "s" / "documents.npy").tolist() == [0, 2, 3]


def test_the_tokens_stay_on_disk_until_read(tmp_path):
    write_store(tmp_path / "s", [[np.arange(10, dtype=np.int32)]])
    store = open_store(tmp_path / "s")
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.int32


def test_what_has_no_token_is_left_out(tmp_path):
    empty = np.empty(0, np.int32)
    write_store(tmp_path / "s", [[empty], [empty, np.asarray([1], np.int32)], []])
    store = open_store(tmp_path / "s")
    assert (store.num_documents, store.num_sentences) == (1, 1)


def test_an_empty_store_opens(tmp_path):
    write_store(tmp_path / "s", [])
    store = open_store(tmp_path / "s")
    assert (store.num_documents, store.num_sentences, len(store.tokens)) == (0, 0, 0)
