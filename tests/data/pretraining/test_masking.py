"""Which tokens are hidden, and what replaces them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headway.config.pretrain import MaskingConfig
from headway.data.corpus.words import WordTable
from headway.data.pretraining.counter_random import Purpose, row_keys
from headway.data.pretraining.masking import Masked, Vocabulary, _random_order, mask_rows
from headway.data.pretraining.ragged import Ragged

SIZE, MASK = 1000, 4
SPECIAL = np.arange(5)


def vocabulary_of(size: int, continues: np.ndarray | None = None) -> Vocabulary:
    words = WordTable.of_pieces(np.zeros(size, bool) if continues is None else continues)
    return Vocabulary(size, MASK, np.arange(size) < 5, words)


PLAIN = vocabulary_of(SIZE)


def mask_together(
    rows: list[np.ndarray], config: MaskingConfig, vocabulary: Vocabulary, keys: np.ndarray
) -> list[Masked]:
    """The masked rows of one batch, with positions counted from the row's start."""
    layout = Ragged(np.asarray([len(row) for row in rows]))
    masked = mask_rows(np.concatenate(rows), layout, keys, config, vocabulary)
    cuts = np.searchsorted(masked.positions, layout.ends)[:-1]
    parts = zip(
        np.split(masked.input_ids, layout.ends[:-1]),
        np.split(masked.positions, cuts),
        np.split(masked.labels, cuts),
        strict=True,
    )
    return [
        Masked(ids, chosen - start, labels)
        for (ids, chosen, labels), start in zip(parts, layout.starts, strict=True)
    ]


def keys_of(seed: int, rows: int) -> np.ndarray:
    return row_keys(seed, np.zeros(rows, np.int64), np.arange(rows))


def mask_alone(row: np.ndarray, config: MaskingConfig, vocabulary: Vocabulary, seed: int) -> Masked:
    return mask_together([row], config, vocabulary, keys_of(seed, 1))[0]


def sequence(length: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(5, SIZE, length, dtype=np.int64)
    return np.concatenate([[2], tokens, [3]])


def within(observed: float, expected: float, draws: int) -> bool:
    """Within four standard deviations of a binomial."""
    return abs(observed / draws - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_of_the_chosen_80_percent_are_masked_10_random_10_kept(rate, whole_words):
    original = sequence(20_000)
    config = MaskingConfig(rate=rate, whole_words=whole_words)
    masked = mask_alone(original, config, PLAIN, 1)
    chosen = len(masked.positions)
    assert chosen == round(rate * 20_000)
    now = masked.input_ids[masked.positions]
    assert within((now == MASK).sum(), 0.8, chosen)
    # A random token is now and then the one that stood there.
    assert within((now == masked.labels).sum(), 0.1, chosen)
    assert within(((now != MASK) & (now != masked.labels)).sum(), 0.1, chosen)


def test_all_other_tokens_stay_and_labels_are_what_stood_there():
    original = sequence(500)
    masked = mask_alone(original, MaskingConfig(), PLAIN, 2)
    assert np.array_equal(masked.labels, original[masked.positions])
    untouched = np.setdiff1d(np.arange(len(original)), masked.positions)
    assert np.array_equal(masked.input_ids[untouched], original[untouched])
    assert np.all(np.diff(masked.positions) > 0)


def test_special_tokens_are_never_hidden_and_never_stand_in():
    small = vocabulary_of(8)
    for seed in range(200):
        original = np.asarray([2, 5, 6, 3, 7, 5, 3], np.int64)
        masked = mask_alone(original, MaskingConfig(rate=0.9), small, seed)
        assert not set(masked.positions) & {0, 3, 6}
        changed = masked.input_ids[masked.positions]
        assert set(changed.tolist()) <= {MASK, 5, 6, 7}


def test_every_place_is_as_likely_as_any_other():
    original = sequence(50)
    counts = np.zeros(52)
    for seed in range(4000):
        counts[mask_alone(original, MaskingConfig(), PLAIN, seed).positions] += 1
    fraction = counts[1:-1] / 4000
    assert np.all(np.abs(fraction - round(0.15 * 50) / 50) < 5 * (0.16 * 0.84 / 4000) ** 0.5)


def test_whole_words_are_hidden_whole():
    continues = np.zeros(SIZE, bool)
    continues[500:] = True
    vocabulary = vocabulary_of(SIZE, continues)
    original = sequence(400)
    # The positions of each word: a beginning, and all pieces that continue it.
    words = np.cumsum(~continues[original])
    for seed in range(30):
        masked = mask_alone(original, MaskingConfig(whole_words=True), vocabulary, seed)
        hidden = set(masked.positions.tolist())
        for word in {words[position] for position in hidden}:
            pieces = set(np.flatnonzero((words == word) & ~np.isin(original, SPECIAL)).tolist())
            assert pieces <= hidden
        assert len(hidden) <= round(0.15 * 400)


@pytest.mark.parametrize("whole_words", [False, True])
def test_short_sequences_hide_one_token_and_empty_ones_none(whole_words):
    config = MaskingConfig(whole_words=whole_words)
    assert len(mask_alone(sequence(2), config, PLAIN, 0).positions) == 1
    assert len(mask_alone(np.asarray([2, 3], np.int64), config, PLAIN, 0).positions) == 0


def test_a_word_longer_than_the_budget_is_hidden_if_it_is_all_there_is():
    vocabulary = vocabulary_of(SIZE, np.arange(SIZE) >= 500)
    original = np.asarray([2, 9, 600, 601, 602, 603, 3], np.int64)
    masked = mask_alone(original, MaskingConfig(whole_words=True), vocabulary, 0)
    assert masked.positions.tolist() == [1, 2, 3, 4, 5]


WORD_PIECES = vocabulary_of(SIZE, np.arange(SIZE) >= 600)


def mixed_rows() -> list[np.ndarray]:
    """300 rows of 0 to 60 tokens, in each of which a special one may stand."""
    rng = np.random.default_rng(1)
    rows = [sequence(int(rng.integers(0, 61)), seed) for seed in range(300)]
    for row in rows[::3]:
        row[rng.integers(len(row))] = 1
    return rows


@pytest.mark.parametrize("rate", [0.15, 0.5])
@pytest.mark.parametrize("whole_words", [False, True])
def test_a_row_is_masked_alone_as_in_any_batch(whole_words, rate):
    config = MaskingConfig(rate=rate, whole_words=whole_words)
    rows, keys = mixed_rows(), keys_of(5, 300)
    together = mask_together(rows, config, WORD_PIECES, keys)
    turned = mask_together(rows[::-1][:77], config, WORD_PIECES, keys[::-1][:77])[::-1]
    for number, (row, masked) in enumerate(zip(rows, together, strict=True)):
        [alone] = mask_together([row], config, WORD_PIECES, keys[number : number + 1])
        for one, other in zip(masked, alone, strict=True):
            assert np.array_equal(one, other)
        if number >= 300 - 77:
            for one, other in zip(masked, turned[number - 300 + 77], strict=True):
                assert np.array_equal(one, other)


def test_a_word_ends_with_its_row_even_if_no_special_token_stands_between():
    rows, keys = [sequence(9, seed)[1:-1] for seed in range(200)], keys_of(1, 200)
    config = MaskingConfig(rate=0.3, whole_words=True)
    together = mask_together(rows, config, WORD_PIECES, keys)
    for number, (row, masked) in enumerate(zip(rows, together, strict=True)):
        [alone] = mask_together([row], config, WORD_PIECES, keys[number : number + 1])
        assert np.array_equal(masked.positions, alone.positions)


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_batch_may_end_with_rows_that_have_nothing_to_hide(whole_words):
    rows = [sequence(9), sequence(8, 1), np.asarray([2, 3], np.int64), np.asarray([2, 1, 3], np.int64)]
    config = MaskingConfig(rate=0.3, whole_words=whole_words)
    masked = mask_together(rows, config, WORD_PIECES, keys_of(1, 4))
    assert [len(one.positions) for one in masked[2:]] == [0, 0]
    [alone] = mask_together(rows[:1], config, WORD_PIECES, keys_of(1, 1))
    assert np.array_equal(masked[0].positions, alone.positions)


@pytest.mark.parametrize("before", range(5))
def test_a_piece_after_special_tokens_begins_a_word(before):
    row = np.asarray([2] * before + [700, 3], np.int64)
    masked = mask_alone(row, MaskingConfig(whole_words=True), WORD_PIECES, 0)
    assert masked.positions.tolist() == [before]


def test_a_word_may_begin_at_the_first_token_of_a_row():
    rows = [np.asarray([10, 700, 701, 11, 702], np.int64)] * 50
    config = MaskingConfig(rate=0.6, whole_words=True)
    hidden = {tuple(m.positions.tolist()) for m in mask_together(rows, config, WORD_PIECES, keys_of(0, 50))}
    assert hidden == {(0, 1, 2), (3, 4)}


@pytest.mark.parametrize(("longest", "most_rows"), [(2**37 - 1, 1), (2**36 - 1, 3), (2**30, 127)])
def test_more_and_longer_rows_than_64_bits_can_order_are_refused(longest, most_rows):
    """26 bits are random, so the row and the position in it have 38 together."""

    def order(rows: int) -> np.ndarray:
        none = np.empty(0, np.int64)
        layout: Any = SimpleNamespace(
            lengths=np.full(rows, longest), owners=none, positions=none, starts=none
        )
        return _random_order(layout, none.astype(np.uint64), none, Purpose.MASKED_TOKEN)

    assert len(order(most_rows)) == 0
    with pytest.raises(ValueError, match=f"{most_rows + 1} rows of up to {longest} tokens are too many"):
        order(most_rows + 1)


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_every_row_hides_as_many_tokens_as_the_rate_says_and_one_at_least(rate):
    rows = mixed_rows()
    for row, masked in zip(
        rows, mask_together(rows, MaskingConfig(rate=rate), PLAIN, keys_of(0, 300)), strict=True
    ):
        maskable = int((row >= 5).sum())
        assert len(masked.positions) == min(maskable, max(1, round(rate * maskable)))


def words_of(row: np.ndarray) -> list[list[int]]:
    """The positions of each word of a row, piece by piece."""
    words: list[list[int]] = []
    for position, token in enumerate(row):
        if token < 5:
            continue
        if token >= 600 and words and words[-1][-1] == position - 1:
            words[-1].append(position)
        else:
            words.append([position])
    return words


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_whole_words_fill_what_they_can_and_no_word_that_fits_is_left_out(rate):
    rows = mixed_rows()
    config = MaskingConfig(rate=rate, whole_words=True)
    for row, masked in zip(rows, mask_together(rows, config, WORD_PIECES, keys_of(0, 300)), strict=True):
        words, hidden = words_of(row), set(masked.positions.tolist())
        chosen = [word for word in words if set(word) <= hidden]
        assert sum(map(len, chosen)) == len(hidden)
        maskable = sum(map(len, words))
        remaining = min(maskable, max(1, round(rate * maskable))) - len(hidden)
        if remaining < 0:
            assert len(chosen) == 1
            assert all(len(word) > len(hidden) + remaining for word in words)
        else:
            assert all(len(word) > remaining for word in words if word not in chosen)


def test_every_word_is_as_likely_as_any_other_of_its_length():
    row = np.asarray([2, *[10, 700] * 20, 3], np.int64)
    counts = np.zeros(42)
    config = MaskingConfig(rate=0.2, whole_words=True)
    for masked in mask_together([row] * 4000, config, WORD_PIECES, keys_of(0, 4000)):
        counts[masked.positions] += 1
    fraction = counts[1:-1] / 4000
    assert np.all(np.abs(fraction - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5)


def test_neighbouring_tokens_are_hidden_independently():
    """Of 20 positions, 3 are hidden: two given ones together as often as by a random choice."""
    both = sum(
        bool({5, 6} <= set(masked.positions.tolist()))
        for masked in mask_together([sequence(20)] * 20_000, MaskingConfig(), PLAIN, keys_of(0, 20_000))
    )
    assert within(both, 3 / 20 * 2 / 19, 20_000)


def test_random_tokens_are_uniform():
    masked = mask_alone(sequence(400_000), MaskingConfig(rate=0.5), PLAIN, 0)
    now = masked.input_ids[masked.positions]
    drawn = now[(now != MASK) & (now != masked.labels)]
    expected = len(drawn) / (SIZE - 5)
    chi_square = ((np.bincount(drawn, minlength=SIZE)[5:] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 994) < 4 * (2 * 994) ** 0.5


def test_the_same_key_hides_the_same_and_another_does_not():
    one, other, different = (mask_alone(sequence(99), MaskingConfig(), PLAIN, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.input_ids, other.input_ids)
    assert not np.array_equal(one.positions, different.positions)
