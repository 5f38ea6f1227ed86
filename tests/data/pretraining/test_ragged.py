"""Where rows lie end to end."""

from __future__ import annotations

import numpy as np

from headway.data.pretraining.ragged import Ragged


def test_starts_owners_and_positions_are_those_of_a_loop():
    lengths = np.asarray([3, 0, 1, 0, 4, 0])
    rows = Ragged(lengths)
    expected = [(owner, position) for owner, n in enumerate(lengths) for position in range(n)]
    assert list(zip(rows.owners, rows.positions, strict=True)) == expected
    assert rows.starts.tolist() == [0, 3, 3, 4, 4, 8]
    assert rows.ends.tolist() == [3, 3, 4, 4, 8, 8]
    assert rows.total == 8


def test_no_rows_hold_nothing():
    rows = Ragged(np.empty(0, np.int64))
    assert (rows.total, len(rows.owners), len(rows.positions)) == (0, 0, 0)
