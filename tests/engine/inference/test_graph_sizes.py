"""A batch in a row of a fixed shape: what was asked lies where it is looked for, the rest disturbs nobody."""

import numpy as np
import pytest
import torch

from headway.data.batch import Batch
from headway.engine.inference.graph_sizes import (
    GraphSize,
    filled_up,
    graph_sizes,
    rows_of,
    smallest_that_holds,
)


def batch_of(lengths: list[int], masked: list[int] | None = None) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    tokens = sum(lengths)
    return Batch.of(
        input_ids=torch.arange(tokens) + 5,
        token_type_ids=torch.arange(tokens) % 2,
        lengths=torch.tensor(lengths),
        labels=none,
        masked_positions=torch.tensor(masked or [], dtype=torch.int64),
        masked_labels=none,
        row_ids=none,
    )


def test_a_row_of_twelve_tokens_is_filled_up_as_documented():
    filled = filled_up(batch_of([3, 2]), GraphSize(12, 5, 4))
    assert filled.cu_seqlens.tolist() == [0, 0, 3, 5, 9, 12]
    assert filled.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert filled.input_ids.tolist() == [5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]
    assert filled.lengths.tolist() == [0, 3, 2, 4, 3]
    assert filled.longest == 4


@pytest.mark.parametrize("lengths", [[1], [4, 4, 4], [3, 1, 2, 4, 2], [4, 4, 3]])
def test_every_filled_row_has_the_same_shapes_and_the_batch_in_it(lengths):
    size = GraphSize(12, 6, 4)
    batch = batch_of(lengths, [0])
    assert size.holds(batch)
    filled = filled_up(batch, size)
    for name, length in {
        "input_ids": 12,
        "token_type_ids": 12,
        "position_ids": 12,
        "cu_seqlens": 7,
        "lengths": 6,
        "masked_positions": 6,
    }.items():
        actual = getattr(filled, name)
        assert actual.shape == (length,)
        assert actual.dtype == getattr(batch, name).dtype
    ends = filled.cu_seqlens.numpy()
    assert ends[0] == 0 and ends[-1] == 12
    assert (np.diff(ends) >= 0).all() and np.diff(ends).max() <= 4
    assert (ends[:-1] < 12).all()  # each begins at a token that exists
    assert filled.lengths[rows_of(batch, size, "sequences")].tolist() == lengths
    tokens = rows_of(batch, size, "tokens")
    for name in ("input_ids", "token_type_ids", "position_ids"):
        assert torch.equal(getattr(filled, name)[tokens], getattr(batch, name))
    assert filled.masked_positions[rows_of(batch, size, "masked")].tolist() == [0]


@pytest.mark.parametrize(
    ("lengths", "masked", "expected"),
    [
        ([80], 0, (256, 128)),
        ([80] * 3, 0, (256, 128)),
        ([80] * 4, 0, (512, 128)),
        ([80] * 25, 0, (2048, 128)),
        ([80] * 23 + [129], 0, (2048, 512)),
        ([80] * 204, 0, (16_384, 128)),
        ([80] * 205, 0, None),  # too many tokens
        ([600], 0, None),  # too long a sequence
        ([4] * 64, 0, (256, 128)),
        ([3] * 64, 0, None),  # no sequence left for the padding
        ([8] * 200, 0, (4096, 128)),  # too many sequences for the next sizes
        ([3] * 1000, 0, None),  # would be more padding than anything else
        ([80] * 25, 300, (6144, 128)),  # too many hidden words
    ],
)
def test_a_batch_goes_into_the_smallest_row_that_holds_it(lengths, masked, expected):
    actual = smallest_that_holds(graph_sizes(512), batch_of(lengths, list(range(masked))))
    assert (actual and (actual.tokens, actual.longest)) == expected


@pytest.mark.parametrize("max_length", [128, 256, 512, 8192])
def test_no_sequence_of_padding_is_longer_than_the_model_reads(max_length):
    for size in graph_sizes(max_length):
        assert size.longest <= min(max_length, size.tokens)
        assert size.sequences * size.longest >= size.tokens
        assert filled_up(batch_of([1]), size).position_ids.max() < max_length
