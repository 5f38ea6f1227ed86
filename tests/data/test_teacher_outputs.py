"""A teacher's outputs are joined with batches by row, in every order, process and number of workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from headway.data.batches import DealtBatches, Example
from headway.data.sampling import BatchSizes
from headway.data.teacher_outputs import TaughtBatches, write_teacher_outputs

NOTHING = np.empty(0, np.int64)
TEXTS = [f"text {row}" for row in range(11)]


class Groups(DealtBatches):
    """Rows of `size` sequences, each of which says its row and its place in it."""

    def __init__(self, rows, size):
        super().__init__(np.full(len(rows), 2 * size), BatchSizes(4), seed=3)
        self.numbers, self.sequences_a_row = rows, size

    def sequences(self, draw):
        ids = [np.asarray([self.numbers[draw.row], place]) for place in range(self.sequences_a_row)]
        return [Example(one, np.zeros(2, np.int64), 0, NOTHING, NOTHING, draw.row) for one in ids]


@pytest.fixture(params=[1, 2])
def source(request, tmp_path):
    """Rows 3 to 9 in another order, and the folder of what a teacher says to all eleven."""
    size = request.param
    said = [np.asarray([[row, place, 0.5] for place in range(size)], np.float32) for row in range(11)]
    write_teacher_outputs(tmp_path, TEXTS, said)
    rows = [9, 3, 4, 8, 5, 7, 6]
    return Groups(rows, size), tmp_path, [TEXTS[row] for row in rows]


def check(batches):
    """Each sequence's tokens are its row and place, and the teacher's outputs begin with the same."""
    for batch in batches:
        assert batch.taught is not None
        assert batch.taught.dtype == torch.float32
        assert torch.equal(batch.taught[:, :2].long(), batch.input_ids.view(-1, 2))


def test_every_sequence_gets_what_the_teacher_said_to_its_row(source):
    taught = TaughtBatches(*source)
    for step in range(9):  # over the ends of epochs, in which a row may follow itself
        check(taught.micro_batches(step, 0, 1, 2))
        check([*taught.micro_batches(step, 0, 2, 2), *taught.micro_batches(step, 1, 2, 2)])
    assert all(batch.taught is None for batch in taught.in_order(0, 1, 4))
    assert (taught.rows, taught.part_sizes(0, 2)) == (7, source[0].part_sizes(0, 2))


def test_a_process_that_makes_batches_maps_the_outputs_itself(source):
    taught = TaughtBatches(*source)
    sent = pickle.dumps(taught)
    check(pickle.loads(sent).micro_batches(0, 0, 1, 1))
    assert isinstance(pickle.loads(sent)._values, np.memmap)


def test_a_row_that_the_teacher_has_not_seen_is_no_silent_gap(source):
    batches, folder, _ = source
    with pytest.raises(KeyError):
        TaughtBatches(batches, folder, ["another text"] * 7)
