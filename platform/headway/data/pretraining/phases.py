"""Combine the phases of pretraining, each with its own batches, into one source for the training loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.data.batches import Batch
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.mixture import MixedBatches

RowBatches = PretrainingBatches | MixedBatches
"""The batches of a phase: of one corpus, or of several."""


class PhasedBatches:
    """The batches of one phase after another; still a pure function of (seed, step)."""

    def __init__(self, phases: Sequence[RowBatches], first_steps: Sequence[int]) -> None:
        """Take the phases, and the step at which each begins, in ascending order from 0."""
        self.phases = phases
        self.first_steps = first_steps

    @property
    def rows(self) -> int:
        """Rows of an epoch of the first phase."""
        return self.phases[0].rows

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        phase, within = self._place(step)
        return phase.micro_batches(within, rank, world_size, parts)

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """See `BatchSource`."""
        phase, within = self._place(step)
        return phase.part_sizes(within, parts)

    def _place(self, step: int) -> tuple[RowBatches, int]:
        """The phase that a step is in, and its number there."""
        phase = max(i for i, first in enumerate(self.first_steps) if first <= step)
        return self.phases[phase], step - self.first_steps[phase]

    def steps_an_epoch(self, parts: int) -> float:
        """Steps of an epoch of the first phase."""
        return self.phases[0].steps_an_epoch(parts)

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Rows of the last phase, in which the run ends."""
        return self.phases[-1].in_order(rank, world_size, batch_size)
