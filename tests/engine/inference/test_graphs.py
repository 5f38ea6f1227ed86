"""Recorded computations: same results as without, from one buffer, and a way on if recording fails."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headway.data.batch import Batch
from headway.engine.inference.graph_sizes import GraphSize, ResultRows
from headway.engine.inference.graphs import PackGraphs, Recording

CPU = torch.device("cpu")
SIZES = (GraphSize(8, 4, 4), GraphSize(16, 8, 4), GraphSize(32, 16, 4))
ROWS: dict[str, ResultRows] = {"lengths": "sequences", "ids": "tokens", "hidden": "masked"}


class Recorder:
    """Replaces CUDA: a recording makes the call again, and overwrites its earlier result."""

    def __init__(self, limit: int = 1000) -> None:
        self.replays, self.recorded, self.limit = 0, 0, limit

    def __call__(self, call: Callable[[], Tensor]) -> Recording:
        self.recorded += 1
        if self.recorded > self.limit:
            raise torch.OutOfMemoryError("no memory left\nfor this")
        output = call()

        def replay() -> None:
            self.replays += 1
            output.copy_(call())

        return Recording(replay, output)


def compute(name: str, batch: Batch) -> Tensor:
    match name:
        case "lengths":
            return batch.cu_seqlens.diff()
        case "ids":
            return batch.input_ids * 10
        case _:
            return batch.input_ids.index_select(0, batch.masked_positions)


def batch_of(lengths: list[int], masked: list[int]) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch.of(
        input_ids=torch.arange(sum(lengths)) + 5,
        token_type_ids=torch.zeros(sum(lengths), dtype=torch.int64),
        lengths=torch.tensor(lengths),
        labels=none,
        masked_positions=torch.tensor(masked, dtype=torch.int64),
        masked_labels=none,
        row_ids=none,
    )


@pytest.mark.parametrize("lengths", [[1], [3, 2], [4, 4], [4, 1, 3, 2, 2], [4] * 8])
def test_a_replay_gives_the_batch_its_own_rows(lengths):
    recorder = Recorder()
    graphs = PackGraphs(compute, ROWS, SIZES, CPU, recorder)
    assert len(graphs) == 9
    for masked in ([0], [sum(lengths) - 1, 0]):
        batch = batch_of(lengths, masked)
        for name, expected in {
            "lengths": lengths,
            "ids": (batch.input_ids * 10).tolist(),
            "hidden": batch.input_ids[masked].tolist(),
        }.items():
            actual = graphs.run(name, batch)
            assert actual is not None and actual.tolist() == expected
    assert recorder.replays == 6 and recorder.recorded == 9


def test_what_no_graph_holds_or_does_is_left_to_the_caller():
    graphs = PackGraphs(compute, ROWS, SIZES, CPU, Recorder())
    assert graphs.run("lengths", batch_of([4] * 9, [])) is None
    assert graphs.run("lengths", batch_of([5], [])) is None
    assert graphs.run("attention", batch_of([3], [])) is None


def test_sizes_that_cannot_be_recorded_are_told_in_one_line_and_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        graphs = PackGraphs(compute, ROWS, SIZES, CPU, Recorder(limit=4))
    [record] = caplog.records
    assert record.getMessage() == "packs of 16 tokens or more run without CUDA graphs: no memory left"
    assert len(graphs) == 4
    assert graphs.run("lengths", batch_of([3], [])) is not None
    assert graphs.run("hidden", batch_of([4, 4, 4], [])) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_graphs_give_what_the_call_gives():
    device = torch.device("cuda")
    with torch.inference_mode():
        graphs = PackGraphs(compute, ROWS, SIZES, device)
        assert len(graphs) == 9
        for lengths in ([1], [3, 2], [4, 1, 3, 2, 2], [3, 2]):
            actual = graphs.run("lengths", batch_of(lengths, []))
            assert actual is not None and actual.tolist() == lengths
