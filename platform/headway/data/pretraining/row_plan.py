"""Cut the documents of a store into rows, each a run of text that fills a sequence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.data.corpus.store import TokenStore
from headway.data.pretraining.ragged import Ragged


class TokenRows(NamedTuple):
    """Rows of one segment, which together contain each token of the store exactly once.

    Attributes:
        starts: int64, shape (rows,): the index of each row's first token.
        lengths: int64, shape (rows,): how many tokens each has.
    """

    starts: np.ndarray
    lengths: np.ndarray

    def of(self, rows: np.ndarray) -> TokenRows:
        """Some of the rows, which are int64 indices."""
        return TokenRows(*(column[rows] for column in self))

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows."""
        return self.lengths[rows]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)


class SentenceRows(NamedTuple):
    """Rows to be split into pairs: runs of neighbouring sentences of one document.

    Attributes:
        first: int64, shape (rows,): the index of each row's first sentence.
        last: int64, shape (rows,): the index after its last sentence.
        document: int64, shape (rows,): the index of its document.
        lengths: int64, shape (rows,): how many tokens it has before truncation.
    """

    first: np.ndarray
    last: np.ndarray
    document: np.ndarray
    lengths: np.ndarray

    def of(self, rows: np.ndarray) -> SentenceRows:
        """Some of the rows, which are int64 indices."""
        return SentenceRows(*(column[rows] for column in self))

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows."""
        return self.lengths[rows]

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.lengths)


def plan_token_rows(store: TokenStore, budget: int) -> TokenRows:
    """Fill rows of one document with whole sentences while they fit into `budget` tokens.

    A sentence longer than the budget is cut into pieces of that length, and other sentences may follow its
    last piece. Nothing is left out.
    """
    pieces = Ragged(-(-np.diff(store.sentences) // budget))
    starts = np.repeat(store.sentences[:-1], pieces.lengths) + pieces.positions * budget
    bounds = np.append(starts, store.sentences[-1])
    ends_of_documents = np.searchsorted(bounds, store.sentences[store.documents])
    end = np.repeat(ends_of_documents[1:], np.diff(ends_of_documents))
    full = np.searchsorted(bounds, starts + budget, side="right") - 1
    first = _follow(np.minimum(full, end))
    return TokenRows(bounds[first], np.diff(bounds[first], append=bounds[-1]))


def plan_sentence_rows(store: TokenStore, budget: int) -> SentenceRows:
    """Fill rows with whole sentences, in order, until each holds `budget` tokens or its document ends."""
    sentences = np.diff(store.documents)
    end = np.repeat(store.documents[1:], sentences)
    full = np.searchsorted(store.sentences, store.sentences[:-1] + budget, side="left")
    first = _follow(np.minimum(full, end))
    last = np.append(first[1:], store.num_sentences)
    document = np.repeat(np.arange(store.num_documents), sentences)[first]
    return SentenceRows(first, last, document, store.sentences[last] - store.sentences[first])


def _follow(successors: np.ndarray) -> np.ndarray:
    """0, its successor, the successor of that, and so on, up to the end; int64."""
    jumps = np.ascontiguousarray(successors).data  # a memoryview: faster to index than an array
    visited: list[int] = []
    position = 0
    while position < len(jumps):
        visited.append(position)
        position = jumps[position]
    return np.asarray(visited, dtype=np.int64)
