"""Rows packed into micro-batches of a fixed number of positions: a function of the seed and the number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.data.sampling import epoch_order


class _Epoch(NamedTuple):
    """The micro-batches that begin in an epoch.

    Attributes:
        first: the number of the first of them, which is how many began in earlier epochs.
        starts: int64, the index in the epoch's order at which each begins.
        offset: how many of the epoch's rows belong to a micro-batch that began earlier; perhaps all of them.
        space: positions that are free at the epoch's end in the last micro-batch.
    """

    first: int
    starts: np.ndarray
    offset: int
    space: int


class TokenPacking:
    """Fills micro-batches with rows in the order of the epochs, each while the next row fits.

    Rows of 3, 2, 2 and 4 tokens, in this order, fill micro-batches of 5 positions as 3 + 2, 2 and 4. There is
    no gap between epochs: the last micro-batch also takes the next epoch's rows while they fit.

    Attributes:
        capacity: how many positions a micro-batch has.
    """

    def __init__(self, lengths: np.ndarray, seed: int, capacity: int) -> None:
        """Take the number of tokens of each row, int64 of shape (rows,), none larger than `capacity`."""
        self.capacity = capacity
        self._lengths = lengths
        self._seed = seed
        self._epochs: list[_Epoch] = []

    def rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and rows of micro-batch `number`, counted from 0; both int64, shape (its rows,)."""
        epoch = 0
        while number >= (begun := self._epoch(epoch)).first + len(begun.starts):
            epoch += 1
        index = number - begun.first
        start = int(begun.starts[index])
        if index + 1 < len(begun.starts):
            order = self._order(epoch)[start : begun.starts[index + 1]]
            return np.full(len(order), epoch), order
        parts = [(epoch, self._order(epoch)[start:])]
        while True:
            epoch += 1
            later = self._epoch(epoch)
            parts.append((epoch, self._order(epoch)[: later.offset]))
            if later.offset < len(self._lengths):
                break
        epochs = [np.full(len(order), number_of_epoch) for number_of_epoch, order in parts]
        return np.concatenate(epochs), np.concatenate([order for _, order in parts])

    def micro_batches_an_epoch(self) -> float:
        """How many micro-batches the first epoch fills; others differ by a row or two."""
        starts = self._epoch(0).starts
        if len(starts) == 1:
            return int(self._lengths.sum()) / self.capacity
        return len(self._lengths) * (len(starts) - 1) / int(starts[-1])

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self._seed, epoch, len(self._lengths))

    def _epoch(self, epoch: int) -> _Epoch:
        """Where micro-batches begin in an epoch; since it depends on the epoch before, all are kept."""
        while len(self._epochs) <= epoch:
            first, space = 0, 0
            if self._epochs:
                before = self._epochs[-1]
                first, space = before.first + len(before.starts), before.space
            self._epochs.append(self._cut(len(self._epochs), first, space))
        return self._epochs[epoch]

    def _cut(self, epoch: int, first: int, space: int) -> _Epoch:
        ends = np.cumsum(self._lengths[self._order(epoch)])
        offset = int(np.searchsorted(ends, space, side="right"))
        starts: list[int] = []
        row, filled_before = offset, int(ends[offset - 1]) if offset else 0
        while row < len(ends):
            starts.append(row)
            space = filled_before + self.capacity
            row = int(np.searchsorted(ends, space, side="right"))
            space -= int(ends[row - 1])
            filled_before = int(ends[row - 1])
        if not starts:
            space -= filled_before
        return _Epoch(first, np.asarray(starts, np.int64), offset, space)
