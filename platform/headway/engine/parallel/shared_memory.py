"""Average the gradients of workers on one machine's processors through memory that they share.

Over loopback the kernel copies each byte again and again. Here each worker writes what another one is to
average where that one reads it, and reads what the others averaged: a reduce-scatter and an all-gather, like
a ring's, but in few copies. Sums are in the workers' order, wherever a gradient lies.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_FOLDER = Path("/dev/shm")
# Bytes at a time. Workers wait for each other twice a piece, so small ones cost more than the copies; three
# times as many, for two workers, fit into the 64 MB that a container has by default.
_PIECE = 16 * 2**20
_ALIGNMENT = 64


class SharedMean:
    """Averages what all workers of a group hold.

    All of a group's workers call it alike. `among` makes one.
    """

    def __init__(self, memory: Tensor, rank: int, world_size: int) -> None:
        """Take uint8 memory of `_size_for(world_size)` bytes, the same for all workers."""
        self._rank, self._world_size = rank, world_size
        self._capacity = _room_for(world_size)
        rooms = memory.view(world_size + 1, world_size, self._capacity)
        self._inboxes, self._results = rooms[:-1], rooms[-1]

    @classmethod
    def among(cls, rank: int, world_size: int) -> "SharedMean | None":
        """One for this worker, where all of the group can open the same memory; otherwise None."""
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
            path.unlink(missing_ok=True)  # what is mapped stays until the last worker ends
        return mean

    def average(self, values: Tensor) -> None:
        """Put the mean over all workers in the place of `values`, floating, shape (numbers,)."""
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


def _room_for(world_size: int) -> int:
    """Bytes that one worker averages of a piece."""
    return _PIECE // world_size // _ALIGNMENT * _ALIGNMENT


def _size_for(world_size: int) -> int:
    return (world_size + 1) * world_size * _room_for(world_size)


def _reserve(path: Path, size: int) -> None:
    """Make a file whose memory is there; none where there is no room, or no such folder."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        path.unlink(missing_ok=True)


def _head(room: Tensor, like: Tensor) -> Tensor:
    """As much of a room's bytes as `like` takes, in its dtype."""
    return room[: like.nbytes].view(like.dtype)
