"""A pack on several cores: every sequence is computed once, and its result has its index."""

import asyncio

import numpy as np
import pytest

from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.serving.scheduling.compute_threads import ComputeThreads, select, split_evenly


def random_pack(sequences: int) -> Pack:
    generator = np.random.default_rng(sequences)
    lengths = generator.integers(3, 32, sequences)
    ids = generator.integers(5, 100, lengths.sum()).astype(np.int32)
    return Pack(ids, np.zeros(len(ids), np.uint8), lengths)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_parts_hold_every_sequence_once_and_about_as_many_tokens(parts):
    pack = random_pack(60)
    split = split_evenly(pack, parts)
    assert sorted(np.concatenate(split).tolist()) == list(range(60))
    tokens = [int(pack.lengths[indices].sum()) for indices in split]
    assert max(tokens) - min(tokens) <= 32
    starts = np.cumsum(pack.lengths) - pack.lengths
    for indices in split:
        part, first = select(pack, indices), starts[indices[0]]
        np.testing.assert_array_equal(part.ids[: part.lengths[0]], pack.ids[first : first + part.lengths[0]])


def test_there_are_no_more_parts_than_sequences():
    assert [len(indices) for indices in split_evenly(random_pack(2), 4)] == [1, 1]


@pytest.mark.parametrize("sequences", [1, 3, 40])
@pytest.mark.parametrize(("folder", "operation"), [("embeddings", "embed"), ("tokens", "tokens")])
def test_results_are_those_of_one_thread(folders, folder, operation, sequences):
    model, pack = EncoderModel(folders[folder], "fp32"), random_pack(sequences)
    expected = model.run(Operation(operation), pack)
    computed = asyncio.run(ComputeThreads(2).run(model, Operation(operation), pack))
    for ours, theirs in zip(computed, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
