"""Processes that make the batches of several steps at once, and memory in which they hand them over."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headway.data.batch import Batch, Packing

_STEPS_AHEAD = 2
_CELL_BYTES = 1 << 26
"""Of address space for the batches of a step: two million tokens. Memory is taken as it is written to."""


def start_fork_server() -> None:
    """Start what the processes are forked from, if it isn't there yet: it loads PyTorch, for seconds."""
    _fork_server()
    forkserver.ensure_running()


def _fork_server() -> Any:
    """What starts the processes: they are forked, but not from this one.

    A fork of a process that is connected to Ray holds Ray's objects, and when it collects garbage their ends
    are written to connections that the two share; this process then waits for good for an answer that was
    given to the other.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "headway.data.pretraining.batches"])
    return context


class LoaderProcessError(RuntimeError):
    """A process that makes batches ended before its time."""


def made_in_processes(
    make: Callable[[int], list[Batch]], first: int, stop: int, processes: int
) -> Generator[list[Batch], None, None]:
    """Yield `make(step)` for each step from `first` up to `stop`, in order, made by processes.

    The processes end with the generator, and with this process however it ends. `make` is pickled for them.

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
        worker_init_fn=_end_with_parent,
        multiprocessing_context=_fork_server(),
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
        self._cells = _SharedMemory(cells, _CELL_BYTES)

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, index: int) -> list[tuple[Packing, int | Tensor]]:
        """How the micro-batches of a step are packed, and where each begins in the step's cell.

        One that the cell has no space for comes as a tensor, which DataLoader sends.
        """
        cell = self._cells.of(index)
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
        return packing.read(self._cells.of(index)[start : start + packing.size].clone())


class _SharedMemory:
    """Cells of memory that this process and those that it is pickled for share.

    The file behind them has no name and lies in memory, where no limit of /dev/shm holds.
    """

    def __init__(self, cells: int, cell_bytes: int, file: int | None = None) -> None:
        self._shape = cells, cell_bytes
        if file is None:
            file = _nameless_file()
            os.ftruncate(file, cells * cell_bytes)
        self._file = file
        memory = np.frombuffer(mmap.mmap(file, cells * cell_bytes), np.uint8)
        self._cells = torch.from_numpy(memory).view(self._shape)

    def of(self, index: int) -> Tensor:
        """The bytes for an item, uint8."""
        return self._cells[index % len(self._cells)]

    def __del__(self) -> None:
        os.close(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (*self._shape, DupFd(self._file))


def _received(cells: int, cell_bytes: int, sent: Any) -> _SharedMemory:
    return _SharedMemory(cells, cell_bytes, sent.detach())


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headway-batches")
    with tempfile.TemporaryFile() as file:  # macOS has no such files
        return os.dup(file.fileno())


def _tells_of_a_death(error: Exception) -> bool:
    """Whether DataLoader found a process dead, or the connection broke by which its tensors come.

    Errors that a process itself met say where they were caught.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)


def _as_it_is(item: Any) -> Any:
    return item


def _end_with_parent(_: int) -> None:
    # Ctrl-C goes to every process of the terminal; this one's parent says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # DataLoader would notice only that the server ended, which lives as long as those that it forked.
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
