"""Make the batches of the next steps, and copy them to the device, while the current step is computed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch

from headway.data.batch import Batch
from headway.engine.loading.batch_processes import made_in_processes

MAX_PROCESSES = 4


class LoadedStep(NamedTuple):
    """The micro-batches of a step.

    Attributes:
        step: the number of the step.
        host: the micro-batches on the host, for counts, lengths and row ids.
        device: the same micro-batches on the device; on a CPU, the same objects.
    """

    step: int
    host: list[Batch]
    device: list[Batch]


class _Fetched(NamedTuple):
    host: list[Batch]
    device: list[Batch]
    copied: torch.cuda.Event | None


def loader_processes(setting: int | None, device: torch.device) -> int:
    """How many processes make batches: as many as set, or by default 0 on a CPU and up to 4 on a GPU.

    With a GPU, one core is left for this process. It is assumed to have as many cores as PyTorch has threads,
    which Ray sets to what a worker has reserved.
    """
    if setting is not None:
        return setting
    return 0 if device.type == "cpu" else max(0, min(MAX_PROCESSES, torch.get_num_threads() - 1))


class Loader:
    """Iterates over the steps from `first` up to, but not including, `stop`, and fetches one ahead.

        with Loader(make, 0, 100, device=device) as loader:
            for step, host, device in loader:
                ...

    Without processes, a thread makes the batches. Processes make the batches of several steps at once, and
    the thread takes them in order. The batches are the same, since a batch is a function of its step. The
    thread also copies them to the device. Copies to a GPU are made from pinned memory on a separate stream,
    for which the consumer's stream waits, but not the host.
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
        """Take the function that makes the micro-batches of a step."""
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
        """Every step once; a second loop continues after the first.

        Raises:
            LoaderProcessError: a process was killed or ran out of memory.
        """
        return self._steps

    def close(self) -> None:
        """End the thread and the processes, which also end with the loop."""
        self._steps.close()

    def _fetch_ahead(self) -> Generator[LoadedStep, None, None]:
        if self._first >= self._stop:
            return
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        made = self._batches()
        # Only this thread deals with the processes. In the main thread, DataLoader would catch SIGCHLD for
        # the whole program, and raise its errors anywhere.
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

    def _batches(self) -> Generator[list[Batch], None, None]:
        if self._processes:
            return made_in_processes(self._make, self._first, self._stop, self._processes)
        return (self._make(step) for step in range(self._first, self._stop))

    def _fetch(self, made: Iterator[list[Batch]], stream: torch.cuda.Stream | None) -> _Fetched:
        host = next(made)
        if stream is None:
            return _Fetched(host, [batch.to(self._device) for batch in host], None)
        with torch.cuda.stream(stream):
            on_device = [batch.to(self._device) for batch in host]
            copied = torch.cuda.Event()
            copied.record(stream)
        return _Fetched(host, on_device, copied)


def _hand_over(fetched: _Fetched, device: torch.device) -> None:
    """Make the consumer's stream wait for the copies, and the allocator wait for the consumer's stream."""
    if fetched.copied is None:
        return
    consumer = torch.cuda.current_stream(device)
    consumer.wait_event(fetched.copied)
    for batch in fetched.device:
        batch.input_ids.record_stream(consumer)  # a view of the buffer of all tensors
