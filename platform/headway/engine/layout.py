"""Where the sequences of an unpadded batch lie in its one row of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

GROUP_SIZE = 16
"""Sequences attended to together. Measured on 2 cores, 64 sequences of 20 to 128 tokens, forward and
backward in bf16: 1 → 95 ms, 8 → 69 ms, 16 → 59 ms, 64 → 71 ms."""


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences of like length, gathered into a small padded block.

    Attributes:
        gather: int64, shape (count * longest,): the token in the row that each place of the block holds;
            places of padding repeat the sequence's first token.
        shape: (count, longest).
        key_mask: bool, shape (count, 1, 1, longest), True on real tokens; None when all are real.
    """

    gather: Tensor
    shape: tuple[int, int]
    key_mask: Tensor | None


@dataclass(frozen=True)
class SequenceLayout:
    """The boundaries of the sequences in a row of tokens.

    Attributes:
        cu_seqlens: int64, shape (sequences + 1,): cumulative lengths, from 0 to the number of tokens.
    """

    cu_seqlens: Tensor

    @property
    def first_tokens(self) -> Tensor:
        """int64, shape (sequences,): where each sequence begins, its [CLS]."""
        return self.cu_seqlens[:-1]

    @property
    def num_tokens(self) -> int:
        """How many tokens the row holds."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def lengths(self) -> Tensor:
        """int64, shape (sequences,): tokens in each sequence."""
        return self.cu_seqlens.diff()

    @cached_property
    def position_ids(self) -> Tensor:
        """int64, shape (tokens,): places that restart at 0 with each sequence."""
        starts = self.first_tokens.repeat_interleave(self.lengths)
        return torch.arange(self.num_tokens, device=starts.device) - starts

    @cached_property
    def groups(self) -> tuple[SequenceGroup, ...]:
        """The sequences, shortest first, in groups of `GROUP_SIZE`."""
        return tuple(self._group(members) for members in self._order.split(GROUP_SIZE))

    @cached_property
    def scatter(self) -> Tensor:
        """int64, shape (tokens,): the place of each token in the groups' blocks laid end to end."""
        block_starts = torch.empty_like(self.first_tokens)
        offset = 0
        for members, group in zip(self._order.split(GROUP_SIZE), self.groups, strict=True):
            count, longest = group.shape
            block_starts[members] = offset + torch.arange(count, device=members.device) * longest
            offset += count * longest
        return block_starts.repeat_interleave(self.lengths) + self.position_ids

    @cached_property
    def _order(self) -> Tensor:
        return torch.argsort(self.lengths, stable=True)

    def _group(self, members: Tensor) -> SequenceGroup:
        lengths = self.lengths[members]
        longest = int(lengths[-1])
        places = torch.arange(longest, device=members.device)
        real = places < lengths[:, None]
        gather = self.first_tokens[members, None] + places * real
        key_mask = None if bool(real.all()) else real[:, None, None, :]
        return SequenceGroup(gather.flatten(), (len(members), longest), key_mask)


def layout_of_lengths(lengths: Tensor) -> SequenceLayout:
    """Lay sequences of these lengths (int64, shape (sequences,)) end to end."""
    return SequenceLayout(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
