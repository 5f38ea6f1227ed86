"""Each row of text in two parts."""

from __future__ import annotations

import numpy as np
import pytest

from headway.data.pretraining.counter_random import row_keys
from headway.data.pretraining.pairs import Segments
from headway.data.pretraining.views import two_parts

LONGEST = 30


@pytest.fixture
def rows() -> Segments:
    lengths = np.tile(np.arange(1, 2 * LONGEST + 1), 20)
    return Segments(np.cumsum(lengths) - lengths, lengths)


def keys(rows: Segments, epoch: int = 0) -> np.ndarray:
    numbers = np.arange(len(rows.lengths))
    return row_keys(0, np.full_like(numbers, epoch), numbers)


def test_the_parts_are_neighbours_that_have_every_token_once(rows):
    parts = two_parts(rows, LONGEST, keys(rows))
    for row, (start, length) in enumerate(zip(*rows, strict=True)):
        (first, second), (size, other) = parts.starts[2 * row :][:2], parts.lengths[2 * row :][:2]
        assert first == start
        if length > 1:
            assert (second, size + other) == (start + size, length)
        else:
            assert (second, size, other) == (start, 1, 1)


def test_no_part_is_longer_than_allowed_or_a_sliver(rows):
    sizes = two_parts(rows, LONGEST, keys(rows)).lengths.reshape(-1, 2)
    assert sizes.max() == LONGEST
    assert (sizes >= np.maximum(rows.lengths // 4, 1)[:, None]).all()


def test_a_row_is_cut_elsewhere_in_another_epoch_anywhere_in_its_middle_half(rows):
    cuts = np.stack([two_parts(rows, LONGEST, keys(rows, epoch)).lengths[::2] for epoch in range(200)])
    of_twenty = cuts[:, rows.lengths == 20]
    assert sorted(set(of_twenty.ravel().tolist())) == list(range(5, 16))
    assert (cuts[:, rows.lengths == 2 * LONGEST] == LONGEST).all()
