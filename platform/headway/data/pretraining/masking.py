"""Choose the tokens that masked language modelling hides, and what replaces them.

The rules are those of Devlin et al. 2018, section 3.1 and appendix A.1, and for whole words those of the
authors' later release. A whole micro-batch is masked at once, but a row's masks depend only on its tokens and
its key.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.config.pretrain import MaskingConfig
from headway.data.corpus.words import WordTable
from headway.data.pretraining.counter_random import Purpose, random_bits
from headway.data.pretraining.ragged import Ragged

_ORDER_BITS = 26
"""Random bits that order a row's tokens. Equal ones are ordered by position, so a choice never depends on the
batch; with 512 tokens, two in 500 rows are equal."""
_LOW_HALF = np.uint64((1 << 32) - 1)


class Vocabulary(NamedTuple):
    """What masking has to know about a tokenizer.

    Attributes:
        size: how many tokens it has.
        mask: id of [MASK].
        special: bool, shape (size,), True for tokens that are never hidden and never replace another.
        words: tells which tokens continue a word; None if only single tokens are hidden.
    """

    size: int
    mask: int
    special: np.ndarray
    words: WordTable | None = None


class Masked(NamedTuple):
    """Masked rows, end to end.

    Attributes:
        input_ids: int64, shape (tokens,), with the chosen tokens replaced.
        positions: int64, shape (chosen,), indices of the chosen tokens, ascending.
        labels: int64, shape (chosen,), the tokens that were there.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def mask_rows(
    input_ids: np.ndarray, rows: Ragged, keys: np.ndarray, config: MaskingConfig, vocabulary: Vocabulary
) -> Masked:
    """Choose `rate` of each row's tokens, at least one: 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        input_ids: int64, shape (tokens,): the rows, end to end.
        rows: their layout.
        keys: uint64, shape (rows,): each row's random numbers are a function of its key.
        config: how many tokens to hide, and whether whole words.
        vocabulary: which tokens may be hidden.
    """
    maskable = np.flatnonzero(~vocabulary.special[input_ids])
    counts = np.bincount(rows.owners[maskable], minlength=len(rows.lengths))
    wanted = np.minimum(counts, np.maximum(1, np.rint(config.rate * counts).astype(np.int64)))
    if config.whole_words:
        assert vocabulary.words is not None
        continues = vocabulary.words.continues(input_ids)
        positions = _choose_words(continues, rows, keys, maskable, wanted)
    else:
        order = _random_order(rows, keys, maskable, Purpose.MASKED_TOKEN)
        positions = np.sort(_first_of_each(order, Ragged(counts), Ragged(wanted)))
    labels = input_ids[positions]
    replaced = input_ids.copy()
    replaced[positions] = _replacements(labels, rows, keys, positions, vocabulary)
    return Masked(replaced, positions, labels)


def _first_of_each(order: np.ndarray, rows: Ragged, wanted: Ragged) -> np.ndarray:
    """The first `wanted` elements of each row of `order`, whose rows are end to end."""
    return order[wanted.positions + np.repeat(rows.starts, wanted.lengths)]


def _random_order(rows: Ragged, keys: np.ndarray, tokens: np.ndarray, purpose: Purpose) -> np.ndarray:
    """Tokens (positions in the batch, ascending), each row's in random order, row after row.

    One sort orders all rows. It sorts numbers that have the row in their high bits, then random bits, then
    the position in the row. On a CPU with AVX-512 it runs on vectors of eight numbers.
    """
    owners, positions = rows.owners[tokens], rows.positions[tokens]
    position_bits = int(rows.lengths.max(initial=1)).bit_length()
    if len(rows.lengths) >> (64 - _ORDER_BITS - position_bits):
        raise ValueError(
            f"{len(rows.lengths)} rows of up to {rows.lengths.max()} tokens are too many to sort"
        )
    numbers = random_bits(keys[owners], purpose, positions)
    numbers >>= np.uint64(64 - _ORDER_BITS)
    numbers |= owners.astype(np.uint64) << np.uint64(_ORDER_BITS)
    numbers <<= np.uint64(position_bits)
    numbers |= positions.astype(np.uint64)
    numbers.sort()
    numbers &= np.uint64((1 << position_bits) - 1)
    # The tokens' owners ascend, and so do those of the sorted numbers.
    return numbers.astype(np.int64) + rows.starts[owners]


def _choose_words(
    continues: np.ndarray, rows: Ragged, keys: np.ndarray, maskable: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Whole words, in random order, while they fit into `wanted` tokens; at least one word of each row."""
    is_continued = continues[maskable] & (np.diff(maskable, prepend=-2) == 1)
    is_continued &= rows.positions[maskable] > 0
    first = np.flatnonzero(~is_continued)
    sizes = np.diff(first, append=len(maskable))
    word_of_token = np.empty(len(continues), np.int64)
    word_of_token[maskable[first]] = np.arange(len(first))
    order = word_of_token[_random_order(rows, keys, maskable[first], Purpose.MASKED_WORD)]
    words = Ragged(np.bincount(rows.owners[maskable[first]], minlength=len(rows.lengths)))
    is_chosen = np.zeros(len(first), bool)
    is_chosen[order[_fitting(sizes[order], words, wanted)]] = True
    return maskable[np.repeat(is_chosen, sizes)]


def _fitting(sizes: np.ndarray, words: Ragged, capacity: np.ndarray) -> np.ndarray:
    """Indices of the words that are taken greedily, in order, while they fit; a row's first if none fits.

    All rows' i-th words are decided together; rows that are full drop out.
    """
    remaining = capacity.copy()
    taken: list[np.ndarray] = []
    rows = np.flatnonzero(words.lengths)
    index = 0
    while len(rows):
        at = words.starts[rows] + index
        fits = sizes[at] <= remaining[rows]
        taken.append(at[fits])
        remaining[rows[fits]] -= sizes[at[fits]]
        index += 1
        rows = rows[(remaining[rows] > 0) & (words.lengths[rows] > index)]
    empty = (remaining == capacity) & (words.lengths > 0)
    return np.concatenate([*taken, words.starts[empty]])


def _replacements(
    labels: np.ndarray, rows: Ragged, keys: np.ndarray, positions: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """What replaces the chosen tokens; the high half of a draw decides the kind, the low half which token."""
    bits = random_bits(keys[rows.owners[positions]], Purpose.REPLACEMENT, rows.positions[positions])
    fate = bits >> np.uint64(32)
    bits &= _LOW_HALF
    bits *= np.uint64(vocabulary.size)
    random_tokens = (bits >> np.uint64(32)).astype(np.int64)
    random_tokens = np.where(vocabulary.special[random_tokens], labels, random_tokens)
    is_mask, is_random = fate < _threshold(0.8), fate < _threshold(0.9)
    return np.where(is_mask, vocabulary.mask, np.where(is_random, random_tokens, labels))


def _threshold(probability: float) -> np.uint64:
    return np.uint64(round(probability * 2**32))
