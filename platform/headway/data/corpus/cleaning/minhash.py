"""Signatures of texts, from which their likeness can be told, and found, without comparing all with all.

The likeness of two texts is the Jaccard index of their sets of runs of five words: how many runs they share,
as a fraction of all that either has. MinHash (Broder 1997) keeps the smallest of each of 128 hash functions
over a set; two sets have equal ones with a probability that is their Jaccard index. Locality-sensitive
hashing (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4) hashes bands of several of
these together: texts that are equal in any band are candidates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash

from headway.config.base import ConfigError
from headway.data.permutation import mix64

HASHES = 128
_WORDS_A_RUN = 5
_SEED = 1
_RECALL = 0.999
# In scripts that put no spaces between words, each character counts as a word.
_WORD = re.compile(
    "[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\\W\u0e00-\u0eff\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u9fff]+"
)
# Odd multipliers, so that a run's hash depends on the order of its words.
_PLACES = np.asarray(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63],
    np.uint64,
)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """The signature of each text; uint32, shape (texts, 128).

    Raises:
        ConfigError: an extra is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError(
            "near_duplicates: needs an extra; install it: pip install 'headway[corpora]'"
        ) from error
    known: dict[str, int] = {}
    runs = [run_hashes(text, known) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(run) for run in runs])]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(runs), offsets, HASHES, _SEED)
    return np.asarray(matrix.to_rows(), np.uint32).reshape(len(texts), HASHES)


def run_hashes(text: str, known: dict[str, int]) -> np.ndarray:
    """A hash of each run of five words, or of all words of a shorter text; uint64.

    Args:
        text: case and punctuation do not count.
        known: hashes of words, which are added to it.
    """
    words = _WORD.findall(text.lower())
    for word in words:
        if word not in known:
            known[word] = xxhash.xxh3_64_intdigest(word.encode())
    hashes = np.fromiter((known[word] for word in words), np.uint64, len(words))
    width = min(_WORDS_A_RUN, max(len(words), 1))
    if not words:
        hashes = np.zeros(1, np.uint64)
    total = np.zeros(len(hashes) - width + 1, np.uint64)
    for place in range(width):
        total += hashes[place : place + len(total)] * _PLACES[place]
    return mix64(total)


def band_width(threshold: float) -> int:
    """How many of the 128 hashes make a band, so that 99.9 % of pairs as alike as this share one."""
    widths = [width for width in range(1, HASHES + 1) if _found(threshold, width) >= _RECALL]
    return max(widths, default=1)


def _found(likeness: float, width: int) -> float:
    """The probability that texts of this likeness share a band."""
    return 1 - (1 - likeness**width) ** (HASHES // width)


def band_hashes(signed: np.ndarray, width: int) -> np.ndarray:
    """A hash of each band of signatures; uint64, shape (texts, 128 // width)."""
    bands = HASHES // width
    total = np.zeros((len(signed), bands), np.uint64)
    columns = signed[:, : bands * width].reshape(len(signed), bands, width).astype(np.uint64)
    for place in range(width):
        total = mix64(total + columns[:, :, place] + np.uint64(1))
    return mix64(total + np.arange(bands, dtype=np.uint64) * _PLACES[0])


def likeness(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The likeness of pairs of texts, by their signatures of shape (pairs, 128); its error is about 0.04."""
    return (one == other).mean(axis=1)
