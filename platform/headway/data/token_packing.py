"""Rows packed into micro-batches of a fixed number of positions: a function of the seed and the number."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.data.sampling import epoch_rows

_CHUNK = 1 << 18


class Lengths(Protocol):
    """The number of tokens of each row: an array, or something that computes them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """Those of some rows, int64, of the shape of `rows`."""
        ...

    def max(self) -> Any:
        """The largest."""
        ...


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

    def __init__(self, lengths: Lengths, seed: int, capacity: int) -> None:
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
            order = self._order(epoch, start, int(begun.starts[index + 1]))
            return np.full(len(order), epoch), order
        parts = [(epoch, self._order(epoch, start, len(self._lengths)))]
        while True:
            epoch += 1
            later = self._epoch(epoch)
            parts.append((epoch, self._order(epoch, 0, later.offset)))
            if later.offset < len(self._lengths):
                break
        epochs = [np.full(len(order), number_of_epoch) for number_of_epoch, order in parts]
        return np.concatenate(epochs), np.concatenate([order for _, order in parts])

    def micro_batches_an_epoch(self) -> float:
        """How many micro-batches the first epoch fills; others differ by a row or two."""
        starts = self._epoch(0).starts
        if len(starts) == 1:
            return self._total() / self.capacity
        return len(self._lengths) * (len(starts) - 1) / int(starts[-1])

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return epoch_rows(self._seed, epoch, np.arange(start, stop), len(self._lengths))

    def _chunks(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """The lengths of an epoch's rows in its order, some at a time, and the place of the first of them."""
        for start in range(0, len(self._lengths), _CHUNK):
            stop = min(start + _CHUNK, len(self._lengths))
            yield start, self._lengths[self._order(epoch, start, stop)]

    def _total(self) -> int:
        return sum(int(lengths.sum()) for _, lengths in self._chunks(0))

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
        starts = array("q")
        for begin, lengths in self._chunks(epoch):
            ends = np.cumsum(lengths)
            row, filled = 0, 0
            while True:
                row = int(np.searchsorted(ends, filled + space, side="right"))
                if row == len(ends):
                    break
                # The row that does not fit begins the next micro-batch.
                starts.append(begin + row)
                filled, space = int(ends[row - 1]) if row else 0, self.capacity
            space -= int(ends[-1]) - filled
        offset = starts[0] if starts else len(self._lengths)
        return _Epoch(first, np.asarray(starts, np.int64), offset, space)
