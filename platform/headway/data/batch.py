"""A batch of unpadded sequences, and the one buffer it crosses to a device or to another process in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 8  # bytes of the widest number


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, without padding.

    Two sequences, "[CLS] a" and "[CLS] b", of which "a" was hidden, make four tokens:

        input_ids      [2, 4, 2, 9]     4 is [MASK]
        token_type_ids [0, 0, 0, 0]
        position_ids   [0, 1, 0, 1]
        cu_seqlens     [0, 2, 4]
        lengths        [2, 2]           longest: 2
        labels         [0, 0]
        masked_places  [1]
        masked_labels  [8]              8 is "a"
        row_ids        [17, 3]

    All of it is made on the host, so that no shape is ever read back from a device. A batch of a fixed number
    of positions may end with padding: `input_ids`, `token_type_ids` and `position_ids` then hold it, all at
    position 0, since it may be longer than any sequence that the model takes, and `cu_seqlens` ends with one
    more entry for it, as if it were a sequence. Nothing else knows of it.

    Attributes:
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,): 0 in segment A, 1 in segment B.
        position_ids: int64, shape (tokens,): restart at 0 with each sequence.
        cu_seqlens: int32, shape (sequences + 1,), or one more with padding: where each sequence begins, and
            the end, as kernels for attention over sequences of different lengths take it.
        lengths: int64, shape (sequences,).
        labels: int64 or float32, shape (sequences,) or (sequences, …): what is learnt of each sequence: a
            class, a number, whether B follows A; 0 if there is nothing of the kind.
        masked_places: int64, shape (masked,): hidden tokens, or those that have labels, by place in the row.
        masked_labels: int64, shape (masked,): what they were, or their labels.
        row_ids: int64, shape (sequences,): the rows of the data set they come from. Always on the host, since
            they are read only to name rows: in messages, and for predictions.
        longest: tokens of the longest sequence, or of the padding if that is longer.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: Tensor
    labels: Tensor
    masked_places: Tensor
    masked_labels: Tensor
    row_ids: Tensor
    longest: int

    @classmethod
    def of(
        cls,
        *,
        input_ids: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor,
        labels: Tensor,
        masked_places: Tensor,
        masked_labels: Tensor,
        row_ids: Tensor,
    ) -> Batch:
        """A batch on the host; what follows from the lengths is worked out."""
        sizes = lengths.numpy()
        cu_seqlens = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=cu_seqlens[1:])
        positions = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], sizes)
        return cls(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=torch.from_numpy(positions),
            cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
            lengths=lengths,
            labels=labels,
            masked_places=masked_places,
            masked_labels=masked_labels,
            row_ids=row_ids,
            longest=int(sizes.max(initial=0)),
        )

    def padded(self, positions: int, token: int) -> Batch:
        """The same sequences, and padding up to so many positions.

        Raises:
            ValueError: they are more already.
        """
        missing = positions - len(self.input_ids)
        if missing < 0:
            raise ValueError(f"{len(self.input_ids)} tokens do not fit into {positions} positions")
        if not missing:
            return self
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, torch.full((missing,), token)]),
            token_type_ids=torch.cat([self.token_type_ids, torch.zeros(missing, dtype=torch.int64)]),
            position_ids=torch.cat([self.position_ids, torch.zeros(missing, dtype=torch.int64)]),
            cu_seqlens=torch.cat([self.cu_seqlens, torch.tensor([positions], dtype=torch.int32)]),
            longest=max(self.longest, missing),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; itself if it is there already.

        All tensors but `row_ids`, which stay on the host, cross in one copy, and are views of one buffer on
        the device. The copy to a GPU is from pinned memory and not waited for.

        Raises:
            ValueError: the batch is on another device than the host.
        """
        device = torch.device(device)
        here = self.input_ids.device
        if here.type == device.type:
            return self
        if here.type != "cpu":
            raise ValueError(f"a batch is not moved from {here} to {device}: that would wait for the device")
        packing = Packing.of(self)
        buffer = torch.empty(packing.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        packing.write(self, buffer)
        return packing.read_on(device, buffer, self.row_ids)


class _Slot(NamedTuple):
    """Where a tensor lies in a buffer; offset and size in bytes."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int
    size: int

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Packing:
    """Where a batch's tensors lie in one buffer of bytes: one copy to a device or to another process.

    Attributes:
        slots: of all tensors, one after the other, `row_ids` last.
        longest: that of the batch.
        size: bytes of the buffer.
    """

    slots: tuple[_Slot, ...]
    longest: int
    size: int

    @classmethod
    def of(cls, batch: Batch) -> Packing:
        """How a batch of these shapes is packed."""
        tensors = _tensors(batch)
        names = [name for name in tensors if name != "row_ids"] + ["row_ids"]
        slots: list[_Slot] = []
        offset = 0
        for name in names:
            tensor = tensors[name]
            size = tensor.numel() * tensor.element_size()
            slots.append(_Slot(name, tensor.dtype, tensor.shape, offset, size))
            offset += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(slots), batch.longest, offset)

    def write(self, batch: Batch, buffer: Tensor) -> None:
        """Copy a batch on the host into a buffer, uint8 of shape (size,)."""
        tensors = _tensors(batch)
        for slot in self.slots:
            slot.view(buffer).copy_(tensors[slot.name])

    def read(self, buffer: Tensor) -> Batch:
        """The batch in a buffer, as views of it."""
        return Batch(**{slot.name: slot.view(buffer) for slot in self.slots}, longest=self.longest)

    def read_on(self, device: torch.device, buffer: Tensor, row_ids: Tensor) -> Batch:
        """The batch on a device, by a copy that is not waited for; `row_ids` stay those on the host."""
        *others, last = self.slots
        there = buffer[: last.offset].to(device, non_blocking=True)
        tensors = {slot.name: slot.view(there) for slot in others}
        return Batch(**tensors, row_ids=row_ids, longest=self.longest)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
