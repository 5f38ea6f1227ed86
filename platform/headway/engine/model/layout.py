"""The layout of the sequences of an unpadded batch in its single row of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from headway.data.batch import Batch

GROUP_SIZE = 16
"""How many sequences are attended to together. Measured on 2 cores with 64 sequences of 20 to 128 tokens,
forward and backward in bf16: 95 ms in groups of 1, 69 ms of 8, 59 ms of 16, and 71 ms of 64."""


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences of similar length, attended to together in a small padded block.

    Attributes:
        count: how many sequences it has.
        longest: tokens of the longest sequence, to which the others are padded.
        key_mask: bool, shape (count, 1, 1, longest), True for real tokens; None if there is no padding.
    """

    count: int
    longest: int
    key_mask: Tensor | None


@dataclass(frozen=True)
class HeadIndices:
    """How the heads of all tokens are copied from the row into the groups' blocks, and back.

    The blocks are end to end, and each is in the order (sequence, head, position), so that heads are ready
    for batched products. For example, sequences of 3 and 1 tokens with one head form one block of 2 x 3
    positions, in which the second sequence's only token also fills its two positions of padding:

        gather:  [0, 1, 2, 3, 3, 3]
        scatter: [0, 1, 2, 3]

    Attributes:
        gather: int64, shape (positions of all blocks,): token * num_heads + head for each position; padding
            repeats the sequence's first token.
        scatter: int64, shape (tokens * num_heads,): the position in the blocks of each token's heads.
    """

    gather: Tensor
    scatter: Tensor


@dataclass(eq=False)
class SequenceLayout:
    """The boundaries of the sequences in a row of tokens.

    For example, sequences of 3 and 1 tokens have `cu_seqlens` [0, 3, 4], `position_ids` [0, 1, 2, 0] and
    `longest` 3. The host knows all sizes, so none is ever read back from a GPU.

    Attributes:
        cu_seqlens: int32, shape (sequences + 1,): cumulative lengths, from 0 to the number of tokens.
        position_ids: int64, shape (tokens,): positions that restart at 0 with each sequence.
        longest: tokens of the longest sequence.
        num_sequences: how many sequences there are, without the one of padding that may fill up the row.
    """

    cu_seqlens: Tensor
    position_ids: Tensor
    longest: int
    num_sequences: int
    _head_indices: dict[int, HeadIndices] = field(default_factory=dict, repr=False)

    @property
    def first_tokens(self) -> Tensor:
        """int32, shape (num_sequences,): the index of each sequence's first token, [CLS]."""
        return self.cu_seqlens[: self.num_sequences]

    @property
    def lengths(self) -> Tensor:
        """int32, shape (num_sequences,): tokens in each sequence."""
        return self._all_lengths[: self.num_sequences]

    @property
    def num_tokens(self) -> int:
        """How many tokens the row has, including padding."""
        return len(self.position_ids)

    @property
    def owners(self) -> Tensor:
        """int64, shape (tokens,): the sequence that each token belongs to."""
        tokens = torch.arange(self.num_tokens, device=self.cu_seqlens.device)
        return torch.searchsorted(self.cu_seqlens[1:], tokens, right=True)

    def to(self, device: torch.device) -> SequenceLayout:
        """The same layout on a device."""
        return replace(
            self,
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            _head_indices={},
        )

    @cached_property
    def groups(self) -> tuple[SequenceGroup, ...]:
        """The sequences in groups of `GROUP_SIZE`, shortest first, for a layout on a CPU."""
        return tuple(self._group(members) for members in self._members)

    def head_indices(self, num_heads: int) -> HeadIndices:
        """Indices that copy from the row to the groups' blocks and back; computed once for all layers."""
        if num_heads not in self._head_indices:
            self._head_indices[num_heads] = self._computed_head_indices(num_heads)
        return self._head_indices[num_heads]

    @cached_property
    def _all_lengths(self) -> Tensor:
        return self.cu_seqlens.diff()

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        return torch.argsort(self._all_lengths, stable=True).split(GROUP_SIZE)

    def _group(self, members: Tensor) -> SequenceGroup:
        lengths = self._all_lengths[members]
        longest = int(lengths[-1])
        if int(lengths[0]) == longest:
            return SequenceGroup(len(members), longest, None)
        real = torch.arange(longest, device=members.device) < lengths[:, None]
        return SequenceGroup(len(members), longest, real[:, None, None, :])

    def _computed_head_indices(self, num_heads: int) -> HeadIndices:
        heads = torch.arange(num_heads, device=self.cu_seqlens.device)
        starts = self.cu_seqlens[:-1].long()
        gathers = []
        first_positions, strides = torch.empty_like(starts), torch.empty_like(starts)
        offset = 0
        for members, group in zip(self._members, self.groups, strict=True):
            positions = torch.arange(group.longest, device=heads.device)
            real = positions < self._all_lengths[members, None]
            tokens = starts[members, None] + positions * real
            gathers.append((tokens[:, None, :] * num_heads + heads[:, None]).flatten())
            rows = torch.arange(group.count, device=heads.device)
            first_positions[members] = offset + rows * (num_heads * group.longest)
            strides[members] = group.longest
            offset += group.count * num_heads * group.longest
        owners = self.owners
        scatter = (first_positions[owners] + self.position_ids)[:, None] + strides[owners, None] * heads
        return HeadIndices(torch.cat(gathers), scatter.flatten())


def layout_of_lengths(lengths: Tensor, device: torch.device | None = None) -> SequenceLayout:
    """The layout of sequences that are joined end to end.

    Args:
        lengths: integer, shape (sequences,), on the CPU.
        device: where the layout is needed; the CPU if None.
    """
    ends = lengths.long().cumsum(0)
    starts = ends - lengths
    num_tokens = int(ends[-1]) if len(ends) else 0
    position_ids = torch.arange(num_tokens) - starts.repeat_interleave(lengths, output_size=num_tokens)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    longest = int(lengths.max()) if len(lengths) else 0
    layout = SequenceLayout(cu_seqlens, position_ids, longest, len(lengths))
    return layout if device is None else layout.to(device)


def layout_of_batch(batch: Batch) -> SequenceLayout:
    """The layout of a batch's sequences, on the batch's device."""
    return SequenceLayout(batch.cu_seqlens, batch.position_ids, batch.longest, len(batch.lengths))
