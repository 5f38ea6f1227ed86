"""Phases follow one another: each step has the batch that its phase alone would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headway.config.pretrain import MaskingConfig
from headway.data.batch import Batch
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.phases import PhasedBatches
from headway.data.sampling import BatchSizes

LENGTHS, SIZES, FIRST_STEPS = [12, 20, 32], [6, 5, 3], [0, 4, 9]


@pytest.fixture(scope="module")
def phases(corpus: Any) -> list[PretrainingBatches]:
    """Three phases, each with its own length and number of rows."""
    return [
        PretrainingBatches(
            corpus.store("train"),
            corpus.tokenizer,
            max_length=length,
            masking=MaskingConfig(),
            pairs="nsp",
            batch_sizes=BatchSizes(size),
            seed=3,
        )
        for length, size in zip(LENGTHS, SIZES, strict=True)
    ]


@pytest.fixture
def phased(phases: list[PretrainingBatches]) -> PhasedBatches:
    return PhasedBatches(phases, FIRST_STEPS)


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.lengths, other.lengths)
        assert torch.equal(one.masked_positions, other.masked_positions)
        assert torch.equal(one.row_ids, other.row_ids)


def phase_and_step(step: int) -> tuple[int, int]:
    """By hand: four steps of the first phase, five of the second, and the rest."""
    return [*((0, n) for n in range(4)), *((1, n) for n in range(5)), *((2, n) for n in range(6))][step]


@pytest.mark.parametrize("step", range(15))
def test_a_step_has_the_batch_of_its_phase_at_its_number_there(step, phases, phased):
    number, within = phase_and_step(step)
    for rank in range(2):
        made = phased.micro_batches(step, rank, 2, 2)
        assert_same(made, phases[number].micro_batches(within, rank, 2, 2))
        assert max(int(batch.lengths.max()) for batch in made) <= LENGTHS[number]
    assert phased.part_sizes(step, 2) == phases[number].part_sizes(within, 2)
    assert sum(phased.part_sizes(step, 2)) == SIZES[number]


def test_rows_are_validated_as_the_last_phase_reads_them(phases, phased):
    assert_same(list(phased.in_order(1, 2, 4)), list(phases[2].in_order(1, 2, 4)))


def test_an_epoch_is_that_of_the_first_phase(phases, phased):
    assert phased.rows == phases[0].rows != phases[2].rows
    assert phased.steps_an_epoch(1) == pytest.approx(phases[0].rows / 6)
