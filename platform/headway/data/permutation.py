"""The order of an epoch, computed place by place: no process holds a permutation as long as the corpus."""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 8


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), in place: every bit depends on every bit.

    Args:
        values: uint64, not a scalar: numpy warns when one wraps around.
    """
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def permuted(places: np.ndarray, rows: int, key: int, epoch: int) -> np.ndarray:
    """What is at some places of a permutation of `range(rows)`, without making the rest of it.

    A generalised Feistel network (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 5)
    permutes the numbers below a x b, the smallest such product of about equal factors that holds all rows.
    What lies beyond the rows is permuted again until it falls among them ("cycle walking", section 3 there),
    which is rare. Round functions are SplitMix64's finaliser, keyed by key, epoch and round.

    Args:
        places: int64, each from 0 up to, but not including, `rows`.
        rows: how many there are.
        key: permutations of different keys have nothing in common.
        epoch: nor have those of different epochs.

    Returns:
        Int64, of the shape of `places`.
    """
    width = int(np.ceil(np.sqrt(rows)))
    height = -(-rows // width)
    keys = _round_keys(key, epoch)
    values = _encrypted(places.astype(np.uint64), width, height, keys)
    while len(beyond := np.flatnonzero(values >= np.uint64(rows))):
        values[beyond] = _encrypted(values[beyond], width, height, keys)
    return values.astype(np.int64)


def _round_keys(key: int, epoch: int) -> np.ndarray:
    numbers = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GAMMA
    of_key = mix64(np.asarray([key], np.uint64) + _GAMMA)
    of_epoch = mix64(np.asarray([epoch], np.uint64) * _GAMMA + of_key)
    return mix64(numbers + of_epoch)


def _encrypted(values: np.ndarray, width: int, height: int, keys: np.ndarray) -> np.ndarray:
    right, left = np.divmod(values, np.uint64(width))
    for number in range(_ROUNDS):
        modulus = np.uint64(width if number % 2 == 0 else height)
        hashed = mix64(right * _GAMMA + keys[number])
        # The sum must not wrap around, which is no addition modulo `modulus`.
        left, right = right, (left + hashed % modulus) % modulus
    return right * np.uint64(width) + left
