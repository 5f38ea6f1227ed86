"""The layout of rows of different lengths that are end to end in one array."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end.

    Rows of 2, 0 and 2 elements have the starts [0, 2, 2], the owners [0, 0, 2, 2] and the positions
    [0, 1, 0, 1].

    Attributes:
        lengths: int64, shape (rows,).
    """

    lengths: np.ndarray

    @cached_property
    def ends(self) -> np.ndarray:
        """Int64, shape (rows,): the index after each row's last element."""
        return np.cumsum(self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """Int64, shape (rows,): the index of each row's first element."""
        return self.ends - self.lengths

    @property
    def total(self) -> int:
        """How many elements all rows have."""
        return int(self.ends[-1]) if len(self.lengths) else 0

    @cached_property
    def owners(self) -> np.ndarray:
        """Int64, shape (total,): the row of each element."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def positions(self) -> np.ndarray:
        """Int64, shape (total,): the index of each element in its row."""
        return np.arange(self.total) - np.repeat(self.starts, self.lengths)
