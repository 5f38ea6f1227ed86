"""Random numbers by key and counter: SplitMix64's own, uniform, and independent of their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from headway.data.pretraining.counter_random import Purpose, coin_flips, integers_below, random_bits, row_keys

DRAWS = 100_000
LEAST = 1e-4  # p-values below are too unlikely for a fixed draw that is random


def test_the_numbers_are_those_of_splitmix64():
    """The first five of the seed 1234567, as the reference implementation (Vigna 2015) prints them."""
    key = np.asarray([1234567], np.uint64)
    assert random_bits(key, Purpose(0), np.arange(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def neighbours(kind: str) -> np.ndarray:
    """Bits of keys and counters that differ in one number only, by one from each to the next."""
    n, fixed = np.arange(DRAWS), np.full(DRAWS, 3)
    if kind == "rows":
        return random_bits(row_keys(0, fixed, n), Purpose.SPLIT)
    if kind == "epochs":
        return random_bits(row_keys(0, n, fixed), Purpose.SPLIT)
    if kind == "counters":
        return random_bits(row_keys(0, fixed[:1], fixed[:1]), Purpose.SPLIT, n)
    keys = [row_keys(seed, fixed[:1], fixed[:1]) for seed in range(DRAWS // 10)]
    return random_bits(np.concatenate(keys), Purpose.SPLIT)


@pytest.fixture(params=["rows", "epochs", "counters", "seeds"])
def bits(request) -> np.ndarray:
    return neighbours(request.param)


def test_every_bit_is_set_half_of_the_time(bits):
    set_bits = [int(((bits >> np.uint64(position)) & np.uint64(1)).sum()) for position in range(64)]
    assert min(stats.binomtest(n, len(bits)).pvalue for n in set_bits) > LEAST


def test_neighbours_differ_in_half_of_their_bits(bits):
    differing = np.bitwise_count(bits[1:] ^ bits[:-1])
    expected = stats.binom.pmf(np.arange(65), 64, 0.5) * len(differing)
    seen = np.bincount(differing, minlength=65)
    middle = slice(20, 45)
    pairs = [np.append(counts[middle], counts[:20].sum() + counts[45:].sum()) for counts in (seen, expected)]
    assert stats.chisquare(*pairs).pvalue > LEAST


def test_fractions_are_uniform_and_do_not_depend_on_the_one_before(bits):
    fractions = bits / 2.0**64
    assert stats.kstest(fractions, "uniform").pvalue > LEAST
    cells = np.histogram2d(fractions[1:], fractions[:-1], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > LEAST


def test_numbers_for_one_purpose_say_nothing_of_those_for_another():
    keys = row_keys(0, np.zeros(DRAWS, np.int64), np.arange(DRAWS))
    one, other = (random_bits(keys, purpose) / 2.0**64 for purpose in (Purpose.CUT_A, Purpose.CUT_B))
    cells = np.histogram2d(one, other, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > LEAST


@pytest.mark.parametrize("bound", [2, 7, 50, 2**40])
def test_integers_are_uniform_below_their_bound(bound):
    drawn = integers_below(np.full(DRAWS, bound), neighbours("rows"))
    assert drawn.min() >= 0
    assert drawn.max() < bound
    cells = min(bound, 64)
    assert stats.chisquare(np.bincount(drawn * cells // bound, minlength=cells)).pvalue > LEAST


def test_the_largest_bits_stay_below_the_bound():
    all_ones = np.full(3, 2**64 - 1, np.uint64)
    assert integers_below(np.asarray([1, 3, 2**40 + 1]), all_ones).tolist() == [0, 2, 2**40]


def test_coins_fall_half_and_half():
    heads = coin_flips(neighbours("rows"))
    assert stats.binomtest(int(heads.sum()), DRAWS).pvalue > LEAST


def test_no_two_rows_epochs_and_seeds_have_a_key_in_common():
    n = np.arange(1000)
    keys = [row_keys(seed, np.full(1000, epoch), n) for seed in range(10) for epoch in range(10)]
    assert len(np.unique(np.concatenate(keys))) == 100_000
