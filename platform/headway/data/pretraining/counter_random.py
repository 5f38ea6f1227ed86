"""Random numbers that are functions of a key and a counter, for whole arrays at once.

Counter-based generators (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") have no state, so
what a row draws depends neither on other rows of its batch nor on which process makes it. This one is
SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", section 6), whose
n-th output is `mix(key + n * GAMMA)`: four multiplications and shifts that numpy runs on whole arrays, for a
hundredth of what a generator object for each row would cost.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from headway.data.permutation import mix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_COUNTERS_PER_PURPOSE = 1 << 32


class Purpose(IntEnum):
    """What a number is drawn for; each purpose has its own 2^32 counters under every key."""

    MASKED_TOKEN = 0
    MASKED_WORD = 1
    REPLACEMENT = 2
    SPLIT = 3
    COIN = 4
    OTHER_DOCUMENT = 5
    OTHER_SENTENCE = 6
    CUT_A = 7
    CUT_B = 8


def row_keys(seed: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A key for each row of an epoch.

    Args:
        seed: of the run.
        epochs: int64, shape (rows,).
        rows: int64, shape (rows,).

    Returns:
        Uint64, shape (rows,).
    """
    of_seed = mix64(np.asarray([seed], np.uint64) + _GAMMA)
    of_epochs = _output(of_seed, epochs.astype(np.uint64))
    return _output(of_epochs, rows.astype(np.uint64))


def random_bits(keys: np.ndarray, purpose: Purpose, counters: np.ndarray | int = 0) -> np.ndarray:
    """64 random bits for each key and counter.

    Args:
        keys: uint64, from `row_keys`.
        purpose: numbers for different purposes are independent.
        counters: int64, of the keys' shape or a single one, from 0 up to 2^32 - 1.

    Returns:
        Uint64, of the keys' shape.
    """
    first = np.uint64(purpose * _COUNTERS_PER_PURPOSE)
    return _output(keys, np.asarray(counters).astype(np.uint64) + first)


def integers_below(bounds: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Uniform integers from 0 up to, but not including, each bound (int64, at least 1), from 64 bits each."""
    # 53 bits fill a float64, and the product rounds to less than the bound for every bound below 2^52.
    return (_unit_interval(bits) * bounds).astype(np.int64)


def coin_flips(bits: np.ndarray) -> np.ndarray:
    """True or False with equal probability, from 64 bits each."""
    return (bits >> np.uint64(63)).astype(bool)


def _unit_interval(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _output(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Output number `counter`, counted from 0, of the generators that start at the keys."""
    counters = np.atleast_1d(counters) + np.uint64(
        1
    )  # numpy warns when a scalar wraps around, not when an array does
    counters *= _GAMMA
    return mix64(counters + keys)
