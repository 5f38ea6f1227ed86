"""Run small packs on a GPU by CUDA graphs: kernels that are recorded once and then launched by one call.

A forward pass of MiniLM consists of about 100 kernels. Launched from Python one by one, they take 3.6 ms,
however few tokens there are, while an H200 computes 2,048 tokens in a tenth of that time. A graph has fixed
shapes and fixed memory. So there is a graph for each of a few sizes of rows (`graph_sizes`), inputs are
copied into its buffer, and all graphs of a model share the memory for intermediate results, since they run
one after another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from headway.data.batch import Batch, Packing
from headway.engine.inference.graph_sizes import (
    GraphSize,
    ResultRows,
    filled_up,
    rows_of,
    smallest_that_holds,
)

_log = logging.getLogger(__name__)


class Recording(NamedTuple):
    """A call that can be repeated.

    Attributes:
        replay: repeats the computation with the current content of its inputs.
        output: the result of the latest replay.
    """

    replay: Callable[[], None]
    output: Tensor


class Recorder(Protocol):
    """Makes a recording of a call that launches the same kernels each time."""

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        """Record a call, which may be called several times for it."""
        ...


class GraphRecorder:
    """Records calls as CUDA graphs that share memory, and so must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        """Record a call, after another call that loads kernels and workspaces, which cannot be recorded."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                call()
            # Another thread may use the GPU meanwhile, for packs of the version that is serving.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = call()
        finally:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own stream set
        current.wait_stream(self._stream)
        return Recording(graph.replay, output)


class _Graph:
    """One computation for rows of one size."""

    def __init__(
        self, compute: Callable[[Batch], Tensor], size: GraphSize, device: torch.device, record: Recorder
    ) -> None:
        self._size, self._pinned = size, device.type == "cuda"
        blank = filled_up(_single_token(), size)
        self._packing = Packing.of(blank)
        self._inputs = self._packed(blank).to(device)
        batch = self._packing.read(self._inputs)
        self._recording = record(lambda: compute(batch))

    def run(self, batch: Batch, rows: ResultRows) -> Tensor:
        """The result for a batch on the host; the next run overwrites it."""
        self._inputs.copy_(self._packed(filled_up(batch, self._size)), non_blocking=True)
        self._recording.replay()
        return self._recording.output[rows_of(batch, self._size, rows)]

    def _packed(self, batch: Batch) -> Tensor:
        """A batch of this size in a buffer on the host."""
        buffer = torch.empty(self._packing.size, dtype=torch.uint8, pin_memory=self._pinned)
        self._packing.write(batch, buffer)
        return buffer


class PackGraphs:
    """A model's recorded computations, by their names and the sizes of rows.

    Args:
        compute: runs a computation, by its name, on a batch on the device. Its shapes must depend on nothing
            but the batch's shapes, and it must not read anything back.
        rows: what the rows of each computation's result belong to, by its name.
        sizes: of rows, smallest first.
        device: of the model.
        record: records a call.
    """

    def __init__(
        self,
        compute: Callable[[str, Batch], Tensor],
        rows: Mapping[str, ResultRows],
        sizes: Sequence[GraphSize],
        device: torch.device,
        record: Recorder | None = None,
    ) -> None:
        self._compute, self._rows, self._device = compute, rows, device
        self._record = record or GraphRecorder(device)
        self._sizes: dict[str, list[GraphSize]] = {name: [] for name in rows}
        self._graphs: dict[tuple[str, GraphSize], _Graph] = {}
        for size in sizes:
            if not all(self._add(name, size) for name in rows):
                break

    def __len__(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(self, name: str, batch: Batch) -> Tensor | None:
        """The result of a computation on a batch on the host, with the same rows as without a graph.

        Returns:
            None if no graph fits. The next run overwrites the tensor, so a copy must have been launched
            before.
        """
        size = smallest_that_holds(self._sizes.get(name, ()), batch)
        return None if size is None else self._graphs[name, size].run(batch, self._rows[name])

    def _add(self, name: str, size: GraphSize) -> bool:
        """Record a computation; if that fails, packs of this size and larger ones run without graphs."""
        try:
            graph = _Graph(lambda batch: self._compute(name, batch), size, self._device, self._record)
        except Exception as error:  # out of memory, or a kernel that cannot be recorded
            reason = str(error).partition("\n")[0]
            _log.warning("packs of %d tokens or more run without CUDA graphs: %s", size.tokens, reason)
            return False
        self._graphs[name, size] = graph
        self._sizes[name].append(size)
        return True


def _single_token() -> Batch:
    one, none = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    return Batch.of(
        input_ids=one,
        token_type_ids=one,
        lengths=one + 1,
        labels=none,
        masked_positions=none,
        masked_labels=none,
        row_ids=none,
    )
