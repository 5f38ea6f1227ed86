"""A pack on several cores: every sequence is answered once, in its place."""

import asyncio

import numpy as np
import pytest

from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.serving.scheduling.compute_threads import Computing, dealt, selected


def random_pack(sequences: int) -> Pack:
    generator = np.random.default_rng(sequences)
    lengths = generator.integers(3, 32, sequences)
    ids = generator.integers(5, 100, lengths.sum()).astype(np.int32)
    return Pack(ids, np.zeros(len(ids), np.uint8), lengths)


@pytest.mark.parametrize("hands", [1, 2, 3, 8])
def test_hands_hold_every_sequence_once_and_about_as_many_tokens(hands):
    pack = random_pack(60)
    places = dealt(pack, hands)
    assert sorted(np.concatenate(places).tolist()) == list(range(60))
    tokens = [int(pack.lengths[hand].sum()) for hand in places]
    assert max(tokens) - min(tokens) <= 32
    parts = [selected(pack, hand) for hand in places]
    starts = np.cumsum(pack.lengths) - pack.lengths
    for hand, part in zip(places, parts, strict=True):
        first = starts[hand[0]]
        np.testing.assert_array_equal(part.ids[: part.lengths[0]], pack.ids[first : first + part.lengths[0]])


def test_more_hands_than_sequences_leave_some_without():
    assert [len(hand) for hand in dealt(random_pack(2), 4)] == [1, 1]


@pytest.mark.parametrize("sequences", [1, 3, 40])
@pytest.mark.parametrize(("folder", "operation"), [("embeddings", "embed"), ("tokens", "tokens")])
def test_results_are_those_of_one_thread(folders, folder, operation, sequences):
    model, pack = EncoderModel(folders[folder], "fp32"), random_pack(sequences)
    expected = model.run(Operation(operation), pack)
    found = asyncio.run(Computing(2).run(model, Operation(operation), pack))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
