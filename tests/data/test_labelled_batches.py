"""Labelled rows dealt out to workers, packed into positions, and read in order for evaluation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import tiny_tokenizer

from headway.config.base import ConfigError
from headway.data.batch import Batch
from headway.data.batches import Example, LabelledBatches, WrappedBatches, collate
from headway.data.sampling import BatchSizes, Draw, deal, rows_of_step
from headway.data.token_packing import TokenPacking

CLS, SEP = 1, 2
ROWS = 23


def texts(seed: int, longest: int = 20) -> list[np.ndarray]:
    """Texts of 0 tokens and more; the first has none, the second all that there may be."""
    rng = np.random.default_rng(seed)
    lengths = [0, longest, *rng.integers(1, longest, ROWS - 2)]
    return [rng.integers(5, 64, length).astype(np.int32) for length in lengths]


def source(batch_size: int = 6, seed: int = 3, **settings: Any) -> LabelledBatches:
    defaults: dict[str, Any] = {"max_length": 16, "batch_size": batch_size, "seed": seed}
    return LabelledBatches(texts(0), np.arange(ROWS) * 10, tiny_tokenizer(), **(defaults | settings))


def held(batch: Batch) -> dict[int, tuple[list[int], list[int], int]]:
    """Row → its tokens, their types, and its label."""
    parts = zip(
        batch.row_ids.tolist(),
        batch.input_ids.split(batch.lengths.tolist()),
        batch.token_type_ids.split(batch.lengths.tolist()),
        batch.labels.tolist(),
        strict=True,
    )
    return {row: (ids.tolist(), types.tolist(), label) for row, ids, types, label in parts}


def everything(batches: LabelledBatches) -> dict[int, tuple[list[int], list[int], int]]:
    return held(batches.batch(np.zeros(ROWS, np.int64), np.arange(ROWS)))


def test_a_text_stands_between_cls_and_sep_and_is_cut_to_the_length():
    batches = source()
    rows = everything(batches)
    for row, text in enumerate(texts(0)):
        kept = text[:14].tolist()
        assert rows[row] == ([CLS, *kept, SEP], [0] * (len(kept) + 2), 10 * row)
    assert batches.lengths.tolist() == [len(ids) for ids, _, _ in rows.values()]
    assert batches.max_tokens == 14
    assert batches.rows == ROWS


def test_the_longer_text_of_a_pair_is_cut_first():
    """Token by token; of two that have become equally long, the one that was shorter."""
    batches = source(second_texts=texts(1))
    rows = everything(batches)
    for row, (first, second) in enumerate(zip(texts(0), texts(1), strict=True)):
        one, two = first.tolist(), second.tolist()
        while len(one) + len(two) > 13:
            if len(one) != len(two):
                max(one, two, key=len).pop()
            else:
                (one if len(first) <= len(second) else two).pop()
        expected = [CLS, *one, SEP, *two, SEP]
        assert rows[row][0] == expected
        assert rows[row][1] == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    assert batches.lengths.tolist() == [len(ids) for ids, _, _ in rows.values()]
    assert max(batches.lengths) == 16


def test_a_row_is_the_same_in_every_epoch():
    batches = source()
    one, other = (batches.sequence(Draw(epoch, 5)) for epoch in (0, 9))
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert (one.label, one.row, len(one.masked_positions), len(one.masked_labels)) == (50, 5, 0, 0)


@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (1, 3), (2, 2), (2, 4), (3, 3)])
def test_a_steps_rows_are_dealt_by_their_lengths_and_shared_out_in_parts(workers, parts):
    batches = source()
    for step in (0, 4, 11):
        _, rows = rows_of_step(3, step, BatchSizes(6), ROWS)
        expected = [rows[part].tolist() for part in deal(batches.lengths[rows], parts)]
        made = [
            batch for rank in range(workers) for batch in batches.micro_batches(step, rank, workers, parts)
        ]
        assert [batch.row_ids.tolist() for batch in made] == expected
        assert batches.part_sizes(step, parts) == [len(row) for row in expected]
    assert batches.steps_an_epoch(parts) == ROWS / 6


class Epochs(LabelledBatches):
    """The label of each row is the epoch it is drawn in."""

    def sequence(self, draw: Draw) -> Example:
        example = super().sequence(draw)
        return Example(
            example.input_ids,
            example.token_type_ids,
            draw.epoch,
            np.empty(0, int),
            np.empty(0, int),
            draw.row,
        )


@pytest.mark.parametrize("tokens", [None, 4 * 16])
def test_every_row_is_drawn_once_an_epoch_and_knows_which(tokens):
    batches = Epochs(texts(0), np.zeros(ROWS), tiny_tokenizer(), max_length=16, batch_size=6, seed=3)
    batches.batch_tokens = tokens
    seen = Counter(
        (int(label), int(row))
        for step in range(40)
        for batch in batches.micro_batches(step, 0, 1, 2)
        for label, row in zip(batch.labels, batch.row_ids, strict=True)
    )
    whole = max(epoch for epoch, _ in seen)
    assert whole >= 4
    for epoch in range(whole):
        assert [seen[epoch, row] for row in range(ROWS)] == [1] * ROWS


def test_in_order_every_row_comes_once_the_shortest_first():
    batches = Epochs(texts(0), np.zeros(ROWS), tiny_tokenizer(), max_length=16, batch_size=6, seed=3)
    expected = sorted(range(ROWS), key=lambda row: int(batches.lengths[row]))
    made = list(batches.in_order(0, 1, 5))
    assert [len(batch.lengths) for batch in made] == [5, 5, 5, 5, 3]
    assert [row for batch in made for row in batch.row_ids.tolist()] == expected
    assert {label for batch in made for label in batch.labels.tolist()} == {0}
    shares = [
        [row for batch in batches.in_order(rank, 3, 4) for row in batch.row_ids.tolist()] for rank in range(3)
    ]
    assert shares == [expected[rank::3] for rank in range(3)]


def test_rows_of_equal_length_stay_in_order_for_evaluation():
    same = [np.full(1 + row % 2, 7, np.int32) for row in range(60)]
    batches = LabelledBatches(same, np.zeros(60), tiny_tokenizer(), max_length=16, batch_size=6, seed=3)
    [batch] = batches.in_order(0, 1, 60)
    assert batch.row_ids.tolist() == [*range(0, 60, 2), *range(1, 60, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_step_of_so_many_positions_has_full_micro_batches(workers):
    batches = source()
    batches.batch_tokens, batches.pad_token = 4 * 21, 3
    packing = TokenPacking(batches.lengths, 3, 21)
    for step in (0, 1, 9):
        made = [b for rank in range(workers) for b in batches.micro_batches(step, rank, workers, 4)]
        for part, batch in enumerate(made):
            _, rows = packing.rows(4 * step + part)
            assert batch.row_ids.tolist() == rows.tolist()
            assert len(batch.input_ids) == 21
            padding = batch.input_ids[int(batch.lengths.sum()) :].tolist()
            assert padding == [3] * len(padding)
        assert batches.part_sizes(step, 4) == [len(batch.row_ids) for batch in made]
    assert batches.steps_an_epoch(4) == packing.micro_batches_an_epoch() / 4


def test_what_one_number_of_parts_fills_does_not_change_what_another_does():
    batches, fresh = source(), source()
    batches.batch_tokens = fresh.batch_tokens = 96
    for parts in (2, 3, 2):
        made = batches.micro_batches(1, 0, 1, parts)
        assert [len(batch.input_ids) for batch in made] == [96 // parts] * parts
    rows = [batch.row_ids.tolist() for batch in fresh.micro_batches(1, 0, 1, 2)]
    assert [batch.row_ids.tolist() for batch in made] == rows


def test_micro_batches_as_long_as_the_longest_row_are_enough_and_shorter_ones_are_refused():
    batches = source()
    batches.batch_tokens = 32
    assert len(batches.micro_batches(0, 0, 1, 2)) == 2
    batches.batch_tokens = 31
    with pytest.raises(ConfigError, match=r"^batch_tokens 31 is too small: each of 2 micro-batches has 15"):
        batches.micro_batches(0, 0, 1, 2)


class Twice(LabelledBatches):
    """Each row gives its text twice."""

    sequences_a_row = 2

    def sequences(self, draw: Draw) -> list[Example]:
        return super().sequences(draw) * 2


@pytest.mark.parametrize("tokens", [None, 96])
def test_a_row_of_several_sequences_counts_as_so_many(tokens):
    batches = Twice(texts(0), np.arange(ROWS), tiny_tokenizer(), max_length=16, batch_size=6, seed=3)
    batches.batch_tokens = tokens
    batches.lengths = 2 * batches.lengths
    made = batches.micro_batches(2, 0, 1, 3)
    assert batches.part_sizes(2, 3) == [len(batch.lengths) for batch in made]
    for batch in made:
        assert batch.row_ids[::2].tolist() == batch.row_ids[1::2].tolist()


def test_labels_may_be_numbers_of_any_kind_or_rows_of_them():
    def label_of(*labels: Any) -> torch.Tensor:
        ids = np.arange(3)
        return collate([Example(ids, ids, label, ids[:0], ids[:0], 0) for label in labels]).labels

    assert label_of(1, 2).tolist() == [1, 2]
    assert label_of(0.5, 1.5).tolist() == [0.5, 1.5]
    assert label_of(np.asarray([1.0, 0.0]), np.asarray([0.0, 1.0])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_batches_that_wrap_others_pass_on_what_they_are_asked():
    batches = source()
    wrapped = WrappedBatches(batches)
    assert wrapped.rows == ROWS
    for step, rank in ((0, 0), (3, 1)):
        ours, theirs = (one.micro_batches(step, rank, 2, 4) for one in (wrapped, batches))
        assert [batch.row_ids.tolist() for batch in ours] == [batch.row_ids.tolist() for batch in theirs]
    assert wrapped.part_sizes(7, 4) == batches.part_sizes(7, 4) == [1, 1, 2, 2]
    batches.batch_tokens = 96
    assert [wrapped.steps_an_epoch(parts) for parts in (2, 3)] == [
        batches.steps_an_epoch(parts) for parts in (2, 3)
    ]
    orders = [[batch.row_ids.tolist() for batch in one.in_order(1, 3, 5)] for one in (wrapped, batches)]
    assert orders[0] == orders[1] and [len(rows) for rows in orders[0]] == [5, 3]
