"""Which tokens are hidden, and what stands in their place."""

from __future__ import annotations

import numpy as np
import pytest

from headway.config.steps import MaskingConfig
from headway.data.masking import Vocabulary, mask_sequence
from headway.data.sampling import random_generator

SIZE, MASK = 1000, 4
SPECIAL = np.arange(5)
PLAIN = Vocabulary(SIZE, MASK, SPECIAL, np.zeros(SIZE, bool))


def sequence(length: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(5, SIZE, length, dtype=np.int32)
    return np.concatenate([[2], tokens, [3]]).astype(np.int32)


def within(observed: float, expected: float, draws: int) -> bool:
    """Within four standard deviations of a binomial."""
    return abs(observed / draws - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_of_the_chosen_80_percent_are_masked_10_random_10_kept(rate, whole_words):
    original = sequence(20_000)
    config = MaskingConfig(rate=rate, whole_words=whole_words)
    masked = mask_sequence(original, config, PLAIN, random_generator(1))
    chosen = len(masked.places)
    assert chosen == round(rate * 20_000)
    now = masked.input_ids[masked.places]
    assert within((now == MASK).sum(), 0.8, chosen)
    # A random token is now and then the one that stood there.
    assert within((now == masked.labels).sum(), 0.1, chosen)
    assert within(((now != MASK) & (now != masked.labels)).sum(), 0.1, chosen)


def test_all_other_tokens_stay_and_labels_are_what_stood_there():
    original = sequence(500)
    masked = mask_sequence(original, MaskingConfig(), PLAIN, random_generator(2))
    assert np.array_equal(masked.labels, original[masked.places])
    untouched = np.setdiff1d(np.arange(len(original)), masked.places)
    assert np.array_equal(masked.input_ids[untouched], original[untouched])
    assert np.all(np.diff(masked.places) > 0)


def test_special_tokens_are_never_hidden_and_never_stand_in():
    small = Vocabulary(8, MASK, SPECIAL, np.zeros(8, bool))
    for seed in range(200):
        original = np.asarray([2, 5, 6, 3, 7, 5, 3], np.int32)
        masked = mask_sequence(original, MaskingConfig(rate=0.9), small, random_generator(seed))
        assert not set(masked.places) & {0, 3, 6}
        changed = masked.input_ids[masked.places]
        assert set(changed.tolist()) <= {MASK, 5, 6, 7}


def test_every_place_is_as_likely_as_any_other():
    original = sequence(50)
    counts = np.zeros(52)
    for seed in range(4000):
        counts[mask_sequence(original, MaskingConfig(), PLAIN, random_generator(seed)).places] += 1
    share = counts[1:-1] / 4000
    assert np.all(np.abs(share - round(0.15 * 50) / 50) < 5 * (0.16 * 0.84 / 4000) ** 0.5)


def test_whole_words_are_hidden_whole():
    continues = np.zeros(SIZE, bool)
    continues[500:] = True
    vocabulary = Vocabulary(SIZE, MASK, SPECIAL, continues)
    original = sequence(400)
    # The places of each word: a beginning, and all pieces that go on with it.
    words = np.cumsum(~continues[original])
    for seed in range(30):
        masked = mask_sequence(original, MaskingConfig(whole_words=True), vocabulary, random_generator(seed))
        hidden = set(masked.places.tolist())
        for word in {words[place] for place in hidden}:
            pieces = set(np.flatnonzero((words == word) & ~np.isin(original, SPECIAL)).tolist())
            assert pieces <= hidden
        assert len(hidden) <= round(0.15 * 400)


@pytest.mark.parametrize("whole_words", [False, True])
def test_short_sequences_hide_one_token_and_empty_ones_none(whole_words):
    config = MaskingConfig(whole_words=whole_words)
    assert len(mask_sequence(sequence(2), config, PLAIN, random_generator(0)).places) == 1
    assert len(mask_sequence(np.asarray([2, 3], np.int32), config, PLAIN, random_generator(0)).places) == 0


def test_a_word_longer_than_the_budget_is_hidden_if_it_is_all_there_is():
    vocabulary = Vocabulary(SIZE, MASK, SPECIAL, np.arange(SIZE) >= 500)
    original = np.asarray([2, 9, 600, 601, 602, 603, 3], np.int32)
    masked = mask_sequence(original, MaskingConfig(whole_words=True), vocabulary, random_generator(0))
    assert masked.places.tolist() == [1, 2, 3, 4, 5]


def test_the_same_generator_hides_the_same():
    one, other = (
        mask_sequence(sequence(99), MaskingConfig(), PLAIN, random_generator(3, 4)) for _ in range(2)
    )
    assert np.array_equal(one.input_ids, other.input_ids)
