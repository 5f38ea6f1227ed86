"""Make the batches of several steps at once, in processes that return them in shared memory."""

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
"""Address space for the batches of a step, two million tokens. Memory is only used once it is written."""


def start_fork_server() -> None:
    """Start the fork server, if it is not running yet; it loads PyTorch for some seconds."""
    _fork_server()
    forkserver.ensure_running()


def _fork_server() -> Any:
    """The context that starts processes by forking a server, not this process.

    A fork of a process that is connected to Ray has copies of Ray's objects. When they are garbage-collected,
    they write to connections that the two processes share, and this process can wait forever for an answer
    that the fork has received.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "headway.data.pretraining.batches"])
    return context


class LoaderProcessError(RuntimeError):
    """A process that makes batches ended unexpectedly."""


def made_in_processes(
    make: Callable[[int], list[Batch]], first: int, stop: int, processes: int
) -> Generator[list[Batch], None, None]:
    """Yield `make(step)` for the steps from `first` up to, but not including, `stop`, made by processes.

    The processes end with the generator, and with this process, however it ends. `make` is pickled for them.

    Raises:
        LoaderProcessError: a process was killed or ran out of memory.
    """
    # DataLoader distributes the steps, returns them in order, and notices when a process dies. But it does
    # not transfer the tensors: for each of them both sides would need a file descriptor, a connection and new
    # pages, which takes half as long as making a batch.
    steps = _Steps(make, first, stop, cells=_STEPS_AHEAD * processes + 1)
    loader: DataLoader[Any] = DataLoader(
        steps,
        batch_size=None,  # an item is a whole step
        num_workers=processes,
        prefetch_factor=_STEPS_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_end_with_parent,
        multiprocessing_context=_fork_server(),
        generator=torch.Generator(),  # otherwise it would use up numbers of dropout's generator
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
        # A traceback may keep the iterator and its processes alive; there is no public way to end them.
        iterator._shutdown_workers()


class _Steps(Dataset[list[tuple[Packing, int | Tensor]]]):
    """The steps as items for DataLoader, each written to a cell of memory that all processes share.

    DataLoader works on up to 2 steps for each process, and the batches of the latest step may not be copied
    yet. With one cell more than that, a cell is free when it is used again.
    """

    def __init__(self, make: Callable[[int], list[Batch]], first: int, stop: int, cells: int) -> None:
        self._make, self._first, self._stop = make, first, stop
        self._cells = _SharedMemory(cells, _CELL_BYTES)

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, index: int) -> list[tuple[Packing, int | Tensor]]:
        """The layout of each of a step's micro-batches, and the offset at which it begins in the step's cell.

        If the cell has no space for a micro-batch, it is returned as a tensor, which DataLoader sends.
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
        """A micro-batch that `__getitem__` sent, copied out of its cell, which will be overwritten."""
        if isinstance(start, Tensor):
            return packing.read(start)
        return packing.read(self._cells.of(index)[start : start + packing.size].clone())


class _SharedMemory:
    """Cells of memory that this process shares with the processes that it is pickled for.

    They are an anonymous file in memory, to which the limits of /dev/shm do not apply.
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
        """The bytes of an item's cell, uint8."""
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
    with tempfile.TemporaryFile() as file:  # macOS has no anonymous files in memory
        return os.dup(file.fileno())


def _tells_of_a_death(error: Exception) -> bool:
    """Whether DataLoader found that a process died, or its connection broke.

    Errors raised within a process are different: their messages say in which process they were caught.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return "in DataLoader worker process" not in str(error)


def _as_it_is(item: Any) -> Any:
    return item


def _end_with_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal, but the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # DataLoader only notices that the fork server ended, which lives as long as its children.
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
