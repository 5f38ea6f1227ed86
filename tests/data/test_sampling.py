"""Rows of each step: every row once an epoch, and the same whoever asks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from headway.config.training import BatchWarmupConfig
from headway.data.sampling import (
    BatchSizes,
    Draw,
    deal,
    dealt_sizes,
    derived_seed,
    epoch_rows,
    parts_of,
    random_generator,
    rows_of_step,
)


def drawn(seed: int, step: int, batch: int, rows: int) -> list[Draw]:
    return [Draw(*pair) for pair in zip(*rows_of_step(seed, step, BatchSizes(batch), rows), strict=True)]


@pytest.mark.parametrize(("rows", "batch"), [(100, 10), (103, 8), (5, 16), (1, 3)])
def test_every_row_is_drawn_once_an_epoch(rows, batch):
    steps = 3 * rows  # three batches' worth of epochs, cut at whole epochs below
    draws = [draw for step in range(steps) for draw in drawn(7, step, batch, rows)]
    epochs = len(draws) // rows
    for epoch in range(epochs):
        assert Counter(d.row for d in draws if d.epoch == epoch) == Counter(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch_rows(seed, epoch, np.arange(50), 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_a_step_depends_on_nothing_but_its_number():
    ahead = drawn(3, 40, 16, 100)
    assert [drawn(3, step, 16, 100) for step in range(41)][40] == ahead


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_dealing_gives_each_row_once_and_balances_tokens(parts):
    lengths = np.random.default_rng(0).integers(5, 129, 64)
    dealt = deal(lengths, parts)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(64))
    tokens = [lengths[part].sum() for part in dealt]
    assert max(tokens) - min(tokens) <= lengths.max()
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_the_example_of_dealing_is_true():
    assert [part.tolist() for part in deal(np.asarray([4, 1, 3, 2]), 2)] == [[0, 1], [2, 3]]


def test_rows_of_equal_length_are_dealt_in_their_order():
    """Python's own sort, which is stable, deals the same 300 rows of three lengths."""
    lengths = np.random.default_rng(1).integers(5, 8, 300)
    expected: list[list[int]] = [[], [], []]
    for place, row in enumerate(sorted(range(300), key=lambda row: -lengths[row])):
        expected[[0, 1, 2, 2, 1, 0][place % 6]].append(row)
    assert [part.tolist() for part in deal(lengths, 3)] == [sorted(part) for part in expected]


def test_parts_without_a_row_are_dealt_nothing():
    assert dealt_sizes(2, 4) == [1, 1, 0, 0]
    assert [part.tolist() for part in deal(np.asarray([4, 5]), 4)] == [[1], [0], [], []]


@pytest.mark.parametrize(("parts", "workers"), [(1, 1), (4, 2), (8, 3), (7, 7), (5, 4)])
def test_each_part_of_a_batch_has_one_worker_and_they_have_about_as_many(parts, workers):
    shares = [parts_of(rank, workers, parts) for rank in range(workers)]
    assert [part for share in shares for part in share] == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_generators_are_functions_of_their_key():
    assert random_generator(1, 2).integers(2**60) == random_generator(1, 2).integers(2**60)
    assert random_generator(1, 2).integers(2**60) != random_generator(2, 1).integers(2**60)
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3) != derived_seed(1, 3, 2)
    assert 0 <= derived_seed(5) < 2**32


def test_without_warmup_every_step_draws_the_whole_batch():
    sizes = BatchSizes.of_run(10, None, total_steps=20, first_step=3)
    assert [sizes.of_step(step) for step in range(4)] == [10] * 4
    assert sizes.before_step(4) == 40


def test_batch_warmup_goes_on_in_the_next_phase():
    warmup = BatchWarmupConfig(start=2, fraction=0.5)
    whole = BatchSizes.of_run(10, warmup, total_steps=20)
    phases = [BatchSizes.of_run(10, warmup, 20, first) for first in (0, 6, 12)]
    assert [whole.of_step(step) for step in range(20)] == [2, 3, 4, 4, 5, 6, 7, 8, 8, 9] + [10] * 10
    assert [phases[0].of_step(step) for step in range(6)] == [2, 3, 4, 4, 5, 6]
    assert [phases[1].of_step(step) for step in range(6)] == [7, 8, 8, 9, 10, 10]
    assert [phases[2].of_step(step) for step in range(8)] == [10] * 8
    for sizes in phases:
        drawn = [sizes.of_step(step) for step in range(8)]
        assert [sizes.before_step(step) for step in range(8)] == [sum(drawn[:step]) for step in range(8)]
