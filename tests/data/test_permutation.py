"""Orders of epochs, computed place by place: permutations that look as random as those of a generator."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headway.data.permutation import permuted


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 99, 1000, 65_537])
def test_each_row_is_at_exactly_one_place(rows):
    order = permuted(np.arange(rows), rows, key=3, epoch=1)
    assert np.array_equal(np.sort(order), np.arange(rows))


def test_a_place_can_be_asked_for_alone_however_many_rows_there_are():
    rows = 10**12 + 39
    places = np.asarray([0, 1, 10**9, rows - 1])
    together = permuted(places, rows, 0, 0)
    assert [int(permuted(places[i : i + 1], rows, 0, 0)[0]) for i in range(4)] == together.tolist()
    assert len(set(together.tolist())) == 4
    assert 0 <= together.min() <= together.max() < rows


@pytest.mark.parametrize("rows", [2, 3, 6, 10, 31])
def test_every_row_is_as_likely_at_every_place_as_any_other(rows):
    """Over 4,000 epochs, by a chi-squared test of each place."""
    orders = np.stack([permuted(np.arange(rows), rows, key=7, epoch=epoch) for epoch in range(4000)])
    values = [stats.chisquare(np.bincount(column, minlength=rows)).pvalue for column in orders.T]
    assert min(values) > 1e-4 / rows


def test_neighbours_do_not_stay_neighbours_and_epochs_have_nothing_in_common():
    rows = 10_000
    one, other = (permuted(np.arange(rows), rows, key=0, epoch=epoch) for epoch in (0, 1))
    assert abs(stats.spearmanr(one[:-1], one[1:]).statistic) < 4 / rows**0.5
    assert abs(stats.spearmanr(one, other).statistic) < 4 / rows**0.5
    assert abs(stats.spearmanr(one, np.arange(rows)).statistic) < 4 / rows**0.5
    # In a random permutation, about one row is where it would be anyway, and one follows the one before it.
    assert (one == np.arange(rows)).sum() < 8
    assert (np.diff(one) == 1).sum() < 8
