"""The few sizes of row that CUDA graphs are recorded for, and a batch filled up to one of them.

A graph repeats its kernels on the same shapes, so every batch that it runs has as many tokens and as many
sequences. What a batch has less of is filled up with sequences that nobody asked for. In a row of 12 tokens
with 5 sequences of at most 4 tokens, sequences of 3 and 2 tokens lie like this:

    cu_seqlens   [0, 0, 3, 5, 9, 12]        an empty sequence, the two, and two of padding
    position_ids [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]

Empty sequences come first: there each begins at a token that exists, also if there is no padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.data.batch import Batch

Rows = Literal["sequences", "tokens", "masked"]
"""What the rows of a result stand for."""

_TOKENS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384)
"""Above the last, an encoder of 6 layers has enough to compute to hide its launches. On an H200, a pack of
2,048 tokens took 3.6 ms without a graph in MiniLM's shape, and one of 65,536 tokens 7.6 ms."""

_LONGEST = (128, 512)
"""Attention starts blocks for sequences of this length, whether they are as long or not. Up to the first, a
sequence is a single one (`short_attention`)."""

_MAX_FILLING = 4
"""A row is at most so many times as long as what is in it, unless it is short."""


class GraphSize(NamedTuple):
    """The shape of a row.

    Attributes:
        tokens: positions in it.
        sequences: in it, those that fill it up included; and how many hidden words it can have.
        longest: tokens of a sequence at most.
    """

    tokens: int
    sequences: int
    longest: int

    def holds(self, batch: Batch) -> bool:
        """Whether a batch without padding fits, and fills enough of the row."""
        tokens = len(batch.input_ids)
        padding = math.ceil((self.tokens - tokens) / self.longest)
        return (
            tokens <= self.tokens <= max(tokens * _MAX_FILLING, _TOKENS[2])
            and batch.longest <= self.longest
            and len(batch.lengths) + padding <= self.sequences
            and len(batch.masked_positions) <= self.sequences
        )


def graph_sizes(max_length: int) -> tuple[GraphSize, ...]:
    """The sizes for a model that reads so many tokens at most, smallest first."""
    return tuple(
        GraphSize(tokens, max(64, tokens // 16), longest)
        for tokens in _TOKENS
        for longest in sorted({min(tokens, max_length, limit) for limit in _LONGEST})
    )


def smallest_that_holds(sizes: Sequence[GraphSize], batch: Batch) -> GraphSize | None:
    """The size that a batch is filled up to; None if it runs as it is."""
    return next((size for size in sizes if size.holds(batch)), None)


def filled_up(batch: Batch, size: GraphSize) -> Batch:
    """A batch on the host in a row of a fixed shape.

    Args:
        batch: on the host, without padding; it fits.
        size: of the row.

    Returns:
        `lengths` are those of all sequences, and `masked_positions` repeats 0 up to as many.
    """
    padding = np.arange(size.tokens - len(batch.input_ids)) % size.longest
    ends = np.arange(len(batch.input_ids), size.tokens, size.longest)[1:]
    ends = np.append(ends, size.tokens) if len(padding) else ends
    real = batch.cu_seqlens.numpy()
    cu_seqlens = np.zeros(size.sequences + 1, np.int32)
    cu_seqlens[first_sequence(batch, size) :] = np.concatenate([real, ends])
    return Batch(
        input_ids=_filled(batch.input_ids, size.tokens),
        token_type_ids=_filled(batch.token_type_ids, size.tokens),
        position_ids=torch.from_numpy(np.concatenate([batch.position_ids.numpy(), padding])),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        lengths=torch.from_numpy(np.diff(cu_seqlens).astype(np.int64)),
        labels=batch.labels[:0],
        masked_positions=_filled(batch.masked_positions, size.sequences),
        masked_labels=batch.masked_labels[:0],
        row_ids=batch.row_ids[:0],
        longest=size.longest,
    )


def first_sequence(batch: Batch, size: GraphSize) -> int:
    """Which sequence of the filled row is the batch's first: so many empty ones lie before it."""
    padding = math.ceil((size.tokens - len(batch.input_ids)) / size.longest)
    return size.sequences - len(batch.lengths) - padding


def rows_of(batch: Batch, size: GraphSize, kind: Rows) -> slice:
    """Which rows of a result over the filled row are the batch's."""
    match kind:
        case "sequences":
            first = first_sequence(batch, size)
            return slice(first, first + len(batch.lengths))
        case "tokens":
            return slice(0, len(batch.input_ids))
        case "masked":
            return slice(0, len(batch.masked_positions))


def _filled(values: Tensor, length: int) -> Tensor:
    filled = np.zeros(length, np.int64)
    filled[: len(values)] = values.numpy()
    return torch.from_numpy(filled)
