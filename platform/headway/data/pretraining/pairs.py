"""Split rows into pairs of segments, for next-sentence prediction or sentence-order prediction.

A pair's form must not reveal its label: how many tokens it has, or whether B ends with a sentence. So a
random B is taken and cut by the same rule as the row's true B, only from another document. A row of one
sentence is cut in two: its true B is the second half, and a random B is the end of another sentence, equally
long. So half of the labels are of each kind, whatever the texts are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from headway.config.base import ConfigError
from headway.data.corpus.store import TokenStore
from headway.data.pretraining.counter_random import Purpose, coin_flips, integers_below, random_bits
from headway.data.pretraining.other_documents import OtherDocuments, Runs
from headway.data.pretraining.row_plan import SentenceRows
from headway.data.pretraining.stored_plan import PlannedRows, RowLengths

IS_NEXT, IS_RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1

PairObjective = Literal["nsp", "sop"]
"""What is predicted of a pair: whether B follows A or is random, or whether the two are in order."""


class Segments(NamedTuple):
    """One run of a store's tokens for each row.

    Attributes:
        starts: int64, shape (rows,).
        lengths: int64, shape (rows,).
    """

    starts: np.ndarray
    lengths: np.ndarray


class Pairs(NamedTuple):
    """Both segments of each row, and int64 labels of shape (rows,)."""

    first: Segments
    second: Segments
    labels: np.ndarray


def check_pairable(store: TokenStore) -> None:
    """Refuse next-sentence prediction if there is no other document to take a random B from."""
    if store.num_documents < 2:
        raise ConfigError("objective: nsp needs at least two documents on each side of the split")


class PairSplitter:
    """Makes pairs of up to `budget` tokens from planned rows, as functions of the rows' keys.

    Attributes:
        rows: that are planned.
        longest: the largest number of tokens that a pair of each row can have.
    """

    def __init__(
        self,
        store: TokenStore,
        rows: PlannedRows[SentenceRows],
        budget: int,
        objective: PairObjective = "nsp",
    ) -> None:
        self.rows = rows
        self.objective = objective
        self._budget = budget
        self.longest = RowLengths(rows, budget, at_most=budget)
        self._sentences = store.sentences
        self._others = OtherDocuments(store)

    def pairs(self, rows: np.ndarray, keys: np.ndarray) -> Pairs:
        """Segments A and B of some rows, and their labels.

        In next-sentence prediction (Devlin et al. 2018, appendix A.2) B is what follows A half of the time,
        and otherwise comes from another document. In sentence-order prediction (Lan et al. 2019, section 3.1)
        the two are swapped half of the time. A row of one sentence is cut in two; B is empty if it is a
        single token.

        Args:
            rows: int64, shape (rows,).
            keys: uint64, shape (rows,): each row's random numbers are a function of its key.
        """
        plan = self.rows.of(rows)
        first, last, longest = plan.first, plan.last, np.minimum(plan.lengths, self._budget)
        several = last - first > 1
        splits = np.maximum(last - first - 1, 1)
        split = first + 1 + integers_below(splits, random_bits(keys, Purpose.SPLIT))
        start, middle, end = (self._sentences[sentence] for sentence in (first, split, last))
        middle = np.where(several, middle, start + (end - start + 1) // 2)
        flips = coin_flips(random_bits(keys, Purpose.COIN))
        if self.objective == "sop":
            return _swapped(*_cut(Runs(start, middle), Runs(middle, end), longest, keys), flips)
        labels = np.where(flips, IS_NEXT, IS_RANDOM)
        random = np.flatnonzero(labels == IS_RANDOM)
        second = Runs(middle.copy(), end)
        runs = self._random_runs(plan.of(random), middle[random], keys[random])
        second.starts[random], second.ends[random] = runs
        return Pairs(*_cut(Runs(start, middle), second, longest, keys), labels)

    def _random_runs(self, plan: SentenceRows, middle: np.ndarray, keys: np.ndarray) -> Runs:
        """A random B for each row, before truncation; `middle` is the end of its A.

        If a row fills the budget, its true B has as many sentences as it takes to fill it. Otherwise, its
        true B is the end of a document. If the row is one sentence, it is the end of a sentence.
        """
        document = plan.document
        wanted = np.minimum(plan.lengths, self._budget) - (middle - self._sentences[plan.first])
        is_cut = plan.last - plan.first == 1
        fills = ~is_cut & (plan.lengths >= self._budget)
        chosen = Runs(np.empty_like(middle), np.empty_like(middle))

        some = np.flatnonzero(fills)
        at_least = np.maximum(wanted[some], 1)
        chosen.starts[some], chosen.ends[some] = self._others.runs(document[some], at_least, keys[some])
        some = np.flatnonzero(~fills & ~is_cut)
        chosen.starts[some], chosen.ends[some] = self._others.tails(document[some], wanted[some], keys[some])
        some = np.flatnonzero(is_cut)
        halves = self._sentences[plan.last[some]] - middle[some]
        chosen.starts[some], chosen.ends[some] = self._others.endings(document[some], halves, keys[some])
        return chosen


def _cut(first: Runs, second: Runs, longest: np.ndarray, keys: np.ndarray) -> tuple[Segments, Segments]:
    """Shorten the longer segment until both fit, at its front or its end, to avoid a bias."""
    half = longest // 2
    length, other_length = first.ends - first.starts, second.ends - second.starts
    capacity = np.maximum(half, longest - other_length)
    other_capacity = np.maximum(longest - half, longest - length)
    return (
        _shorten(first.starts, length, capacity, random_bits(keys, Purpose.CUT_A)),
        _shorten(second.starts, other_length, other_capacity, random_bits(keys, Purpose.CUT_B)),
    )


def _shorten(starts: np.ndarray, lengths: np.ndarray, capacity: np.ndarray, bits: np.ndarray) -> Segments:
    excess = np.maximum(0, lengths - capacity)
    return Segments(starts + integers_below(excess + 1, bits), lengths - excess)


def _swapped(first: Segments, second: Segments, is_swapped: np.ndarray) -> Pairs:
    one, other = (
        Segments(*(np.where(is_swapped, b, a) for a, b in zip(pair[0], pair[1], strict=True)))
        for pair in ((first, second), (second, first))
    )
    return Pairs(one, other, np.where(is_swapped, SWAPPED, IN_ORDER))
