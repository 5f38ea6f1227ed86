"""A batch of unpadded sequences, and the single buffer that carries it to a device or to another process."""

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

        input_ids        [2, 4, 2, 9]     4 is [MASK]
        token_type_ids   [0, 0, 0, 0]
        position_ids     [0, 1, 0, 1]
        cu_seqlens       [0, 2, 4]
        lengths          [2, 2]           longest: 2
        labels           [0, 0]
        masked_positions [1]
        masked_labels    [8]              8 is "a"
        row_ids          [17, 3]

    All of it is made on the host, so that no shape is ever read back from a device. A batch of a fixed number
    of positions may end with padding. Then `input_ids`, `token_type_ids` and `position_ids` include it, all
    of it at position 0, since it may be longer than any sequence that the model takes, and `cu_seqlens` has
    one more entry, as if the padding were a sequence. The other tensors do not include it.

    Attributes:
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,): 0 in segment A, 1 in segment B.
        position_ids: int64, shape (tokens,): restart at 0 with each sequence.
        cu_seqlens: int32, shape (sequences + 1,), or one more with padding: where each sequence begins, and
            the end, as kernels for attention over sequences of different lengths take it.
        lengths: int64, shape (sequences,).
        labels: int64 or float32, shape (sequences,) or (sequences, …): the label of each sequence, such as a
            class, a number, or whether B follows A; 0 if sequences have no labels.
        masked_positions: int64, shape (masked,): indices in `input_ids` of the tokens that are hidden, or
            that have labels.
        masked_labels: int64, shape (masked,): the hidden tokens, or the labels.
        row_ids: int64, shape (sequences,): the rows of the data set that the sequences come from. Always on
            the host, since they are only used to name rows, in messages and in predictions.
        longest: tokens of the longest sequence, or of the padding if that is longer.
        taught: float32, shape (units, …): what a teacher's model puts out for the batch, if there is one.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: Tensor
    labels: Tensor
    masked_positions: Tensor
    masked_labels: Tensor
    row_ids: Tensor
    longest: int
    taught: Tensor | None = None

    @classmethod
    def of(
        cls,
        *,
        input_ids: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor,
        labels: Tensor,
        masked_positions: Tensor,
        masked_labels: Tensor,
        row_ids: Tensor,
    ) -> Batch:
        """A batch on the host; what follows from the lengths is computed."""
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
            masked_positions=masked_positions,
            masked_labels=masked_labels,
            row_ids=row_ids,
            longest=int(sizes.max(initial=0)),
        )

    def padded(self, positions: int, token: int) -> Batch:
        """The same sequences, followed by padding, which is made of `token`, up to `positions` positions.

        Raises:
            ValueError: the sequences have more tokens than that.
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

        All tensors except `row_ids`, which stay on the host, are copied at once and become views of one
        buffer on the device. The copy to a GPU is made from pinned memory, and not waited for.

        Raises:
            ValueError: the batch is neither on the host nor on that device.
        """
        device = torch.device(device)
        here = self.input_ids.device
        if here.type == device.type:
            return self
        if here.type != "cpu":
            raise ValueError(f"a batch cannot move from {here} to {device} without waiting for the device")
        packing = Packing.of(self)
        buffer = torch.empty(packing.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        packing.write(self, buffer)
        return packing.read_on(device, buffer, self.row_ids)


class _Slot(NamedTuple):
    """The position of a tensor in a buffer; offset and size are in bytes."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int
    size: int

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Packing:
    """How a batch's tensors are laid out in one buffer of bytes, which is copied at once.

    Attributes:
        slots: one for each tensor, in order, with `row_ids` last.
        longest: `Batch.longest`.
        size: of the buffer, in bytes.
    """

    slots: tuple[_Slot, ...]
    longest: int
    size: int

    @classmethod
    def of(cls, batch: Batch) -> Packing:
        """The layout of a batch with these shapes."""
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
        """The batch in a buffer, as views of the buffer."""
        return Batch(**{slot.name: slot.view(buffer) for slot in self.slots}, longest=self.longest)

    def read_on(self, device: torch.device, buffer: Tensor, row_ids: Tensor) -> Batch:
        """Copy the batch to a device without waiting for the copy; `row_ids` stay on the host."""
        *others, last = self.slots
        there = buffer[: last.offset].to(device, non_blocking=True)
        tensors = {slot.name: slot.view(there) for slot in others}
        return Batch(**tensors, row_ids=row_ids, longest=self.longest)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
