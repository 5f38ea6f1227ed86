"""Documents ordered by a measure, kept beside their store so that no process holds the order.

A ranking is a folder in the store's own, such as `rows/by-length`. Documents of 3, 1 and 3 tokens have

    document_order.npy    [1, 0, 2]         int64: the documents, shortest first
    document_ranks.npy    [1, 0, 2]         int64: the index of each document in that order
    document_counts.npy   [0, 0, 1, 1, 3…]  int64: how many documents have less than 0, 1, 2, … tokens
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headway.data.atomic import atomic_folder
from headway.data.corpus.store import TokenStore
from headway.data.pretraining.counter_random import integers_below
from headway.data.pretraining.stored_plan import CANNOT_WRITE

ORDER, RANKS, COUNTS = "document_order.npy", "document_ranks.npy", "document_counts.npy"
"""Files of a ranking; they do not count as content of a store's folder."""
_LARGEST = 1 << 14
"""Documents of more tokens are all the same: no sequence asks for so many."""
_DOCUMENTS_AT_ONCE = 1 << 18

Measure = Literal["length", "last_sentence"]


class Ranking:
    """Documents ordered by a measure.

    Args:
        order: see above.
        ranks: see above.
        counts: see above, up to `_LARGEST` + 1.
        folder: that they were mapped from, if any; a ranking is pickled as the place where it is.
    """

    def __init__(
        self, order: np.ndarray, ranks: np.ndarray, counts: np.ndarray, folder: Path | None = None
    ) -> None:
        self._order, self._ranks, self._counts, self._folder = order, ranks, counts, folder

    def __reduce__(self) -> tuple[Callable[..., Ranking], tuple[Any, ...]]:
        if self._folder is None:
            return Ranking, (self._order, self._ranks, self._counts)
        return _opened, (self._folder,)

    def at_least(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first rank, and the one after the last, of the documents whose measure is at least this."""
        low = self._counts[np.minimum(values, _LARGEST)]
        return low, np.full_like(low, len(self._order))

    def at_most(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first rank, and the one after the last, of the documents whose measure is at most this."""
        high = self._counts[np.clip(values, -1, _LARGEST) + 1]
        return np.zeros_like(high), high

    def draw(self, excluded: np.ndarray, low: np.ndarray, high: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Documents of ranks from `low` up to `high`, or of any if only the excluded one has such a rank."""
        rank = self._ranks[excluded]
        others = high - low - ((low <= rank) & (rank < high))
        low = np.where(others > 0, low, 0)
        high = np.where(others > 0, high, len(self._order))
        is_among = (low <= rank) & (rank < high)
        drawn = low + integers_below(high - low - is_among, bits)
        return self._order[drawn + (is_among & (drawn >= rank))]


def ranking(store: TokenStore, measure: Measure) -> Ranking:
    """The documents of a store by the tokens of all, or of their last sentences; made if it is not there.

    A store that is not in a folder, or in one that cannot be written to, is ranked in memory.
    """
    if store.folder is not None:
        folder = store.folder / "rows" / f"by-{measure}"
        try:
            if not folder.is_dir():
                with atomic_folder(folder) as draft:
                    _write(store, measure, draft)
            return _opened(folder)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
    order, ranks = (np.empty(store.num_documents, np.int64) for _ in range(2))
    return Ranking(order, ranks, _rank(store, measure, order, ranks))


def _opened(folder: Path) -> Ranking:
    order, ranks = (np.load(folder / name, mmap_mode="r").view(np.ndarray) for name in (ORDER, RANKS))
    return Ranking(order, ranks, np.load(folder / COUNTS), folder)


def _write(store: TokenStore, measure: Measure, folder: Path) -> None:
    shape = (store.num_documents,)
    order, ranks = (
        np.lib.format.open_memmap(folder / name, "w+", np.int64, shape) for name in (ORDER, RANKS)
    )
    np.save(folder / COUNTS, _rank(store, measure, order, ranks))
    order.flush()
    ranks.flush()


def _rank(store: TokenStore, measure: Measure, order: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Fill in the order and the ranks, by counting; the counts."""
    sizes = np.zeros(_LARGEST + 2, np.int64)
    for _, values in _measured(store, measure):
        sizes += np.bincount(values + 1, minlength=len(sizes))
    counts = np.cumsum(sizes)
    free = counts[:-1].copy()  # the next rank of each value
    for first, values in _measured(store, measure):
        by_value = np.argsort(values, kind="stable")
        of_value = np.bincount(values, minlength=len(free))
        before = np.cumsum(of_value) - of_value
        in_order = values[by_value]
        here = free[in_order] + np.arange(len(values)) - before[in_order]
        ranks[first + by_value] = here
        order[here] = first + by_value
        free += of_value
    return counts


def _measured(store: TokenStore, measure: Measure) -> Iterator[tuple[int, np.ndarray]]:
    """The measure of some documents at a time, at most `_LARGEST`, and the index of the first of them."""
    for first in range(0, store.num_documents, _DOCUMENTS_AT_ONCE):
        bounds = store.documents[first : first + _DOCUMENTS_AT_ONCE + 1]
        ends = store.sentences[bounds[1:]]
        begins = bounds[:-1] if measure == "length" else bounds[1:] - 1
        yield first, np.minimum(ends - store.sentences[begins], _LARGEST)
