"""Draw text that does not follow a segment: whole sentences of another document."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.data.corpus.store import TokenStore
from headway.data.pretraining.counter_random import Purpose, integers_below, random_bits
from headway.data.pretraining.document_ranking import ranking


class Runs(NamedTuple):
    """Runs of a store's tokens.

    Attributes:
        starts: int64, shape (runs,): the index of each run's first token.
        ends: int64, shape (runs,): the index after its last token.
    """

    starts: np.ndarray
    ends: np.ndarray


class OtherDocuments:
    """Draws from the documents of a store that are long enough, excluding one."""

    def __init__(self, store: TokenStore) -> None:
        self._sentences = store.sentences
        self._documents = store.documents
        self._by_length = ranking(store, "length")
        self._by_last_sentence = ranking(store, "last_sentence")

    def runs(self, excluded: np.ndarray, wanted: np.ndarray, keys: np.ndarray) -> Runs:
        """Whole sentences from anywhere in another document, as many as it takes to reach `wanted` tokens.

        Args:
            excluded: int64, shape (runs,): the document that each run must not come from.
            wanted: int64, shape (runs,), at least 1: a run is shorter only if all other documents are.
            keys: uint64, shape (runs,): the draws are functions of these.
        """
        longest_first = self._by_length.at_least(wanted)
        document = self._by_length.draw(excluded, *longest_first, random_bits(keys, Purpose.OTHER_DOCUMENT))
        begin, end = self._documents[document], self._documents[document + 1]
        # Only sentences with enough text after them are drawn; others would make short runs.
        latest = np.searchsorted(self._sentences, self._sentences[end] - wanted, side="right") - 1
        latest = np.clip(latest, begin, end - 1)
        start = begin + integers_below(latest - begin + 1, random_bits(keys, Purpose.OTHER_SENTENCE))
        stop = np.searchsorted(self._sentences, self._sentences[start] + wanted, side="left")
        return Runs(self._sentences[start], self._sentences[np.minimum(stop, end)])

    def tails(self, excluded: np.ndarray, max_tokens: np.ndarray, keys: np.ndarray) -> Runs:
        """The last sentences of another document, as many as fit into `max_tokens`.

        If every other document ends with a longer sentence, that sentence alone.

        Args:
            excluded: int64, shape (runs,): the document that each run must not come from.
            max_tokens: int64, shape (runs,).
            keys: uint64, shape (runs,): the draws are functions of these.
        """
        short = self._by_last_sentence.at_most(max_tokens)
        document = self._by_last_sentence.draw(excluded, *short, random_bits(keys, Purpose.OTHER_DOCUMENT))
        begin, end = self._documents[document], self._documents[document + 1]
        start = np.searchsorted(self._sentences, self._sentences[end] - max_tokens, side="left")
        return Runs(self._sentences[np.clip(start, begin, end - 1)], self._sentences[end])

    def endings(self, excluded: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> Runs:
        """The last `lengths` tokens of another document, from within its last sentence.

        If every other document ends with a shorter sentence, that whole sentence.

        Args:
            excluded: int64, shape (runs,): the document that each run must not come from.
            lengths: int64, shape (runs,).
            keys: uint64, shape (runs,): the draws are functions of these.
        """
        long = self._by_last_sentence.at_least(lengths + 1)
        document = self._by_last_sentence.draw(excluded, *long, random_bits(keys, Purpose.OTHER_DOCUMENT))
        last = self._documents[document + 1] - 1
        end = self._sentences[last + 1]
        return Runs(np.maximum(end - lengths, self._sentences[last]), end)
