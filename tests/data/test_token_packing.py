"""Rows packed into micro-batches of as many positions each, against a loop that takes them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from headway.data.sampling import epoch_rows
from headway.data.token_packing import TokenPacking


def packed_one_by_one(
    lengths: np.ndarray, seed: int, capacity: int, epochs: int
) -> list[list[tuple[int, int]]]:
    """(epoch, row) of each micro-batch; the last one may be unfinished."""
    filled: list[list[tuple[int, int]]] = [[]]
    space = capacity
    for epoch in range(epochs):
        for row in epoch_rows(seed, epoch, np.arange(len(lengths)), len(lengths)):
            if lengths[row] > space:
                filled.append([])
                space = capacity
            filled[-1].append((epoch, int(row)))
            space -= lengths[row]
    return filled


@pytest.mark.parametrize("capacity", [20, 21, 64, 500, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
@pytest.mark.parametrize("rows", [1, 7, 90])
def test_micro_batches_are_those_of_a_loop_in_any_order_asked(rows, capacity, chunk, monkeypatch):
    monkeypatch.setattr("headway.data.token_packing._CHUNK", chunk)
    lengths = np.random.default_rng(0).integers(1, 21, rows)
    expected = packed_one_by_one(lengths, 3, capacity, epochs=7)[:-1]
    packing = TokenPacking(lengths, 3, capacity)
    for number in np.random.default_rng(1).permutation(len(expected)):
        epochs, drawn = packing.rows(int(number))
        assert list(zip(epochs.tolist(), drawn.tolist(), strict=True)) == expected[number]


def test_rows_that_fill_micro_batches_to_the_last_position_leave_no_gap():
    packing = TokenPacking(np.full(6, 5), 0, 10)
    assert packing.micro_batches_an_epoch() == 3
    assert [len(packing.rows(number)[0]) for number in range(9)] == [2] * 9


@pytest.mark.parametrize("capacity", [64, 700, 2000])
def test_the_micro_batches_of_an_epoch_are_counted_about_right(capacity):
    lengths = np.random.default_rng(0).integers(1, 61, 400)
    expected = packed_one_by_one(lengths, 3, capacity, epochs=20)
    packing = TokenPacking(lengths, 3, capacity)
    assert packing.micro_batches_an_epoch() == pytest.approx(len(expected) / 20, rel=0.02)
