"""Processes that make the batches of several steps at once, and memory in which they hand them over."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headway.data.batch import Batch, Packing

_STEPS_AHEAD = 2
_CELL_BYTES = 1 << 26
"""Of address space for the batches of a step: two million tokens. Memory is taken as it is written to."""


class LoaderProcessError(RuntimeError):
    """A process that makes batches ended before its time."""


def made_in_processes(
    make: Callable[[int], list[Batch]], first: int, stop: int, processes: int
) -> Generator[list[Batch], None, None]:
    """Yield `make(step)` for each step from `first` up to `stop`, in order, made by forked processes.

    The processes end with the generator, and with this process however it ends.

    Raises:
        LoaderProcessError: a process ended, killed or out of memory.
    """
    # DataLoader gives the steps out in order and takes them back in order, notices when a process dies, and
    # its processes end when this one does. Only tensors don't go its way: that costs both sides a file
    # descriptor, a connection and fresh pages for each, together half as long as making a batch.
    steps = _Steps(make, first, stop, cells=_STEPS_AHEAD * processes + 1)
    loader: DataLoader[Any] = DataLoader(
        steps,
        batch_size=None,  # an item is a step, whole
        num_workers=processes,
        prefetch_factor=_STEPS_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts,
        multiprocessing_context="fork",  # the store, the rows' plan and the cells are shared, not sent
        generator=torch.Generator(),  # or it would draw from the one that dropout draws from
    )
    iterator: Any = iter(loader)
    try:
        for index, sent in enumerate(iterator):
            yield [steps.receive(index, packing, start) for packing, start in sent]
    except (RuntimeError, OSError, EOFError) as error:
        if not _tells_of_a_death(error):
            raise
        raise LoaderProcessError(
            f"a process that makes batches ended unexpectedly ({error}); it may have run out of memory; "
            "loader_processes: 0 makes batches without processes"
        ) from error
    finally:
        # A traceback may keep the iterator alive, and so its processes; there is no public way.
        iterator._shutdown_workers()


class _Steps(Dataset[list[tuple[Packing, int | Tensor]]]):
    """The steps as DataLoader counts them, each written to a cell of memory that all processes share.

    DataLoader has at most 2 steps a process under way, and of the step that it gave back last the batches may
    not be copied yet. With one cell more than that, a cell is free when its turn comes again.
    """

    def __init__(self, make: Callable[[int], list[Batch]], first: int, stop: int, cells: int) -> None:
        self._make, self._first, self._stop = make, first, stop
        self._cells = [_shared_memory(_CELL_BYTES) for _ in range(cells)]

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, index: int) -> list[tuple[Packing, int | Tensor]]:
        """How the micro-batches of a step are packed, and where each begins in the step's cell.

        One that the cell has no space for comes as a tensor, which DataLoader sends.
        """
        cell = self._cells[index % len(self._cells)]
        start = 0
        sent: list[tuple[Packing, int | Tensor]] = []
        for batch in self._make(self._first + index):
            packing = Packing.of(batch)
            if start + packing.size <= len(cell):
                packing.write(batch, cell[start : start + packing.size])
                sent.append((packing, start))
                start += packing.size
            else:
                buffer = torch.empty(packing.size, dtype=torch.uint8)
                packing.write(batch, buffer)
                sent.append((packing, buffer))
        return sent

    def receive(self, index: int, packing: Packing, start: int | Tensor) -> Batch:
        """A micro-batch as `__getitem__` sent it, out of its cell, which will be written to again."""
        if isinstance(start, Tensor):
            return packing.read(start)
        cell = self._cells[index % len(self._cells)]
        return packing.read(cell[start : start + packing.size].clone())


def _shared_memory(size: int) -> Tensor:
    """Bytes that this process and those forked from it share; no file, so no limit of /dev/shm."""
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, size), np.uint8))


def _tells_of_a_death(error: Exception) -> bool:
    """Whether DataLoader found a process dead, or the connection broke by which its tensors come.

    Errors that a process itself met say where they were caught.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)


def _as_it_is(item: Any) -> Any:
    return item


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C goes to every process of the terminal; this one's parent says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
