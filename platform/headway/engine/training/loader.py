"""Make the next steps' batches, and copy them to the device, while this one is computed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from headway.data.batch import Batch, PackedBatch

MAX_PROCESSES = 4
_STEPS_AHEAD = 2


class LoaderError(RuntimeError):
    """A process that makes batches ended before its time."""


class LoadedStep(NamedTuple):
    """The micro-batches of a step.

    Attributes:
        step: its number.
        host: the micro-batches on the host, for counts, lengths and row ids.
        device: the same ones on the device; on a CPU, the very same.
    """

    step: int
    host: list[Batch]
    device: list[Batch]


class _Fetched(NamedTuple):
    host: list[Batch]
    device: list[Batch]
    copied: torch.cuda.Event | None


def loader_processes(setting: int | None, device: torch.device) -> int:
    """How many processes make batches: what is set, or else 0 on a CPU and up to 4 on a GPU.

    On a GPU one core is left to this process. Its cores are as many as PyTorch has threads, which Ray sets to
    what a worker has reserved.
    """
    if setting is not None:
        return setting
    return 0 if device.type == "cpu" else max(0, min(MAX_PROCESSES, torch.get_num_threads() - 1))


class Loader:
    """Iterates over the steps from `first` up to, not including, `stop`, one fetched ahead.

        with Loader(make, 0, 100, device=device) as loader:
            for step, host, device in loader:
                ...

    Without processes, a thread makes the batches. With processes, they make several steps at once, and the
    thread takes them in order. What comes out is the same, since a batch is a function of its step. The
    thread also copies to the device; on a GPU from pinned memory, on a stream of its own, which the
    consumer's stream waits for and the host does not.
    """

    def __init__(
        self,
        make: Callable[[int], list[Batch]],
        first: int,
        stop: int,
        *,
        device: torch.device,
        processes: int = 0,
    ) -> None:
        """Take what makes the micro-batches of a step: in forked processes if there are any."""
        self._make = make
        self._first, self._stop = first, stop
        self._device = device
        self._processes = processes
        self._steps = self._fetch_ahead()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[LoadedStep]:
        """Every step once; a second loop goes on where the first left off.

        Raises:
            LoaderError: a process ended, killed or out of memory.
        """
        return self._steps

    def close(self) -> None:
        """End the thread and the processes; the end of the loop does so too."""
        self._steps.close()

    def _fetch_ahead(self) -> Generator[LoadedStep, None, None]:
        if self._first >= self._stop:
            return
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        made = self._made_in_processes() if self._processes else self._made_here()
        # All that has to do with the processes happens in this one thread. Started by the main thread,
        # DataLoader would catch SIGCHLD for the whole program and raise its errors anywhere.
        with ThreadPoolExecutor(1, thread_name_prefix="headway-loader") as thread:
            try:
                upcoming = thread.submit(self._fetch, made, stream)
                for step in range(self._first, self._stop):
                    fetched = upcoming.result()
                    if step + 1 < self._stop:
                        upcoming = thread.submit(self._fetch, made, stream)
                    _hand_over(fetched, self._device)
                    yield LoadedStep(step, fetched.host, fetched.device)
            finally:
                thread.submit(made.close).result()

    def _made_here(self) -> Generator[list[Batch], None, None]:
        for step in range(self._first, self._stop):
            yield self._make(step)

    def _made_in_processes(self) -> Generator[list[Batch], None, None]:
        # DataLoader gives the steps out in order and takes them back in order, sends tensors through shared
        # memory, notices when a process dies, and its processes end when this one does.
        steps: DataLoader[Any] = DataLoader(
            _Steps(self._make, self._first, self._stop),
            batch_size=None,  # an item is a step, whole
            num_workers=self._processes,
            prefetch_factor=_STEPS_AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context="fork",  # the store and the rows' plan are shared, not sent
            generator=torch.Generator(),  # or it would draw from the one that dropout draws from
        )
        iterator: Any = iter(steps)
        try:
            for packed in iterator:
                yield [batch.unpacked() for batch in packed]
        except (RuntimeError, OSError, EOFError) as error:
            if not _tells_of_a_death(error):
                raise
            raise LoaderError(
                f"a process that makes batches ended unexpectedly ({error}); it may have run out of memory "
                "or of /dev/shm; loader_processes = 0 makes batches without processes"
            ) from error
        finally:
            # A traceback may keep the iterator alive, and so its processes; there is no public way.
            iterator._shutdown_workers()

    def _fetch(self, made: Iterator[list[Batch]], stream: torch.cuda.Stream | None) -> _Fetched:
        host = next(made)
        if stream is None:
            return _Fetched(host, [batch.to(self._device) for batch in host], None)
        with torch.cuda.stream(stream):
            on_device = [batch.to(self._device) for batch in host]
            copied = torch.cuda.Event()
            copied.record(stream)
        return _Fetched(host, on_device, copied)


class _Steps(Dataset[list[PackedBatch]]):
    """The steps as DataLoader counts them, each micro-batch in one tensor."""

    def __init__(self, make: Callable[[int], list[Batch]], first: int, stop: int) -> None:
        self._make, self._first, self._stop = make, first, stop

    def __len__(self) -> int:
        return self._stop - self._first

    def __getitem__(self, index: int) -> list[PackedBatch]:
        return [PackedBatch.of(batch) for batch in self._make(self._first + index)]


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


def _hand_over(fetched: _Fetched, device: torch.device) -> None:
    """Make the consumer's stream wait for the copies, and the allocator wait for the consumer's stream."""
    if fetched.copied is None:
        return
    consumer = torch.cuda.current_stream(device)
    consumer.wait_event(fetched.copied)
    for batch in fetched.device:
        batch.input_ids.record_stream(consumer)  # stands for the one buffer that all tensors lie in
