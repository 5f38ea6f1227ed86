"""Fill batches up to one of the few sizes of rows for which CUDA graphs are recorded.

A graph repeats its kernels with the same shapes, so all its batches must have the same number of tokens and
of sequences. A smaller batch is filled up with additional sequences. For example, in a row of 12 tokens with
5 sequences of up to 4 tokens, sequences of 3 and 2 tokens become

    cu_seqlens   [0, 0, 3, 5, 9, 12]        an empty sequence, the two, and two of padding
    position_ids [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]

Empty sequences come first, where each begins at a token that exists even if there is no padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.data.batch import Batch

ResultRows = Literal["sequences", "tokens", "masked"]
"""What each row of a result belongs to: a sequence, a token, or a masked token."""

_TOKENS = (256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384)
"""Beyond the last size, an encoder of 6 layers computes long enough to hide the launches of kernels. On
an H200, with MiniLM's shape and without a graph, a pack of 2,048 tokens took 3.6 ms, and one of 65,536
tokens 7.6 ms."""

_LONGEST = (128, 512)
"""Attention launches blocks for sequences of this length, however long they are. Up to the first, a
sequence is a single block (`short_attention`)."""

_MAX_FILLING = 4
"""A row is at most this many times as long as its batch, unless it is short."""


class GraphSize(NamedTuple):
    """The size of a row.

    Attributes:
        tokens: how many tokens it has, including padding.
        sequences: how many sequences it has, including those of padding, and how many masked tokens it can
            have.
        longest: the largest number of tokens in a sequence.
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
    """The sizes for a model that reads up to `max_length` tokens, smallest first."""
    return tuple(
        GraphSize(tokens, max(64, tokens // 16), longest)
        for tokens in _TOKENS
        for longest in sorted({min(tokens, max_length, limit) for limit in _LONGEST})
    )


def smallest_that_holds(sizes: Sequence[GraphSize], batch: Batch) -> GraphSize | None:
    """The smallest size that holds a batch; None if there is none."""
    return next((size for size in sizes if size.holds(batch)), None)


def filled_up(batch: Batch, size: GraphSize) -> Batch:
    """A batch filled up to a row of a fixed size.

    Args:
        batch: on the host, without padding; it must fit.
        size: of the row.

    Returns:
        A batch whose `lengths` are those of all sequences, and whose `masked_positions` are filled up with
        zeros to the number of sequences.
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
    """The index in the filled row of the batch's first sequence, which is how many empty ones come first."""
    padding = math.ceil((size.tokens - len(batch.input_ids)) / size.longest)
    return size.sequences - len(batch.lengths) - padding


def rows_of(batch: Batch, size: GraphSize, kind: ResultRows) -> slice:
    """Which rows of a result for the filled row belong to the batch."""
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
