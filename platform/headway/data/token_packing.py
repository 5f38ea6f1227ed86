"""Which rows each micro-batch of a fixed number of positions holds: a function of the seed and its number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.data.sampling import epoch_order


class _Epoch(NamedTuple):
    """The micro-batches that begin in an epoch.

    Attributes:
        first: number of the first of them; as many began in earlier epochs.
        starts: int64: where in the epoch's order each begins.
        offset: where rows end that belong to a micro-batch begun earlier; all of the epoch's, maybe.
        space: positions left in the micro-batch that is not yet full at the epoch's end.
    """

    first: int
    starts: np.ndarray
    offset: int
    space: int


class TokenPacking:
    """Rows in the order of the epochs, each put into a micro-batch while it fits.

    Rows of 3, 2, 2 and 4 tokens, in this order, fill micro-batches of 5 positions as 3 + 2, 2 and 4. There is
    no gap between epochs: the last of them also takes what fits of the next epoch's rows.

    Attributes:
        capacity: positions of a micro-batch.
    """

    def __init__(self, lengths: np.ndarray, seed: int, capacity: int) -> None:
        """Take the most tokens of each row, int64 of shape (rows,), none more than `capacity`."""
        self.capacity = capacity
        self._lengths = lengths
        self._seed = seed
        self._epochs: list[_Epoch] = []

    def rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and rows of micro-batch `number`, counted from 0; int64, shape (rows of it,)."""
        epoch = 0
        while number >= (found := self._epoch(epoch)).first + len(found.starts):
            epoch += 1
        index = number - found.first
        start = int(found.starts[index])
        if index + 1 < len(found.starts):
            order = self._order(epoch)[start : found.starts[index + 1]]
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
        """How many micro-batches an epoch fills, by the first one; others differ by a row or two."""
        starts = self._epoch(0).starts
        if len(starts) == 1:
            return int(self._lengths.sum()) / self.capacity
        return len(self._lengths) * (len(starts) - 1) / int(starts[-1])

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self._seed, epoch, len(self._lengths))

    def _epoch(self, epoch: int) -> _Epoch:
        """The boundaries in an epoch. They follow from those of the epoch before, so all are kept."""
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
