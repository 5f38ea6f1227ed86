"""Average the gradients of workers on one machine's CPUs, through shared memory.

Over a network's loopback device, each byte is copied many times. Here, each worker averages one part of the
gradients: it reads what the others wrote for it, and then the others read its result. This is a
reduce-scatter and an all-gather, but with few copies. Sums are always in the order of the workers.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_FOLDER = Path("/dev/shm")
# Bytes that are averaged at a time. Workers wait for each other twice for each piece, so small pieces would
# take longer than copying. For two workers, three times as many bytes fit into the 64 MB that a container has
# by default.
_PIECE = 16 * 2**20
_ALIGNMENT = 64


class SharedMean:
    """Averages tensors over all workers of a group, which all call it alike; `among` makes one."""

    def __init__(self, memory: Tensor, rank: int, world_size: int) -> None:
        """Take `_size_for(world_size)` bytes of memory that all workers share, uint8."""
        self._rank, self._world_size = rank, world_size
        self._capacity = _capacity_for(world_size)
        cells = memory.view(world_size + 1, world_size, self._capacity)
        self._inboxes, self._results = cells[:-1], cells[-1]

    @classmethod
    def among(cls, rank: int, world_size: int) -> "SharedMean | None":
        """One for this worker, or None if not all workers of the group can open the same memory."""
        names = [f"headway-{uuid.uuid4().hex}"]
        dist.broadcast_object_list(names)
        path, size = _FOLDER / names[0], _size_for(world_size)
        if rank == 0:
            _reserve(path, size)
        dist.barrier()
        opened = torch.tensor(int(path.is_file() and path.stat().st_size == size))
        dist.all_reduce(opened, dist.ReduceOp.MIN)
        mean = None
        if opened:
            storage: Any = torch.UntypedStorage.from_file(str(path), True, size)
            mean = cls(torch.empty(0, dtype=torch.uint8).set_(storage), rank, world_size)
        dist.barrier()
        if rank == 0:
            path.unlink(missing_ok=True)  # the mapped memory stays until the last worker ends
        return mean

    def average(self, values: Tensor) -> None:
        """Replace `values`, floating, shape (numbers,), by their mean over all workers."""
        for piece in values.split(self._capacity // values.element_size() * self._world_size):
            self._average_piece(piece)

    def _average_piece(self, values: Tensor) -> None:
        parts = values.tensor_split(self._world_size)
        mine = parts[self._rank]
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        for rank in others:
            _head(self._inboxes[rank, self._rank], parts[rank]).copy_(parts[rank])
        dist.barrier()
        rows = [_head(self._inboxes[self._rank, rank], mine) for rank in range(self._world_size)]
        rows[self._rank] = mine
        total = rows[0] + rows[1]
        for row in rows[2:]:
            total += row
        mine.copy_(total.div_(self._world_size))
        _head(self._results[self._rank], mine).copy_(mine)
        dist.barrier()
        for rank in others:
            parts[rank].copy_(_head(self._results[rank], parts[rank]))


def _capacity_for(world_size: int) -> int:
    """How many bytes of a piece each worker averages."""
    return _PIECE // world_size // _ALIGNMENT * _ALIGNMENT


def _size_for(world_size: int) -> int:
    return (world_size + 1) * world_size * _capacity_for(world_size)


def _reserve(path: Path, size: int) -> None:
    """Make a file and allocate its memory; make none if there is not enough, or no such folder."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        path.unlink(missing_ok=True)


def _head(cell: Tensor, like: Tensor) -> Tensor:
    """As many of a cell's bytes as `like` has, in its dtype."""
    return cell[: like.nbytes].view(like.dtype)
