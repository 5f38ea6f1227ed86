"""Which rows each step trains on: a pure function of the seed and the step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headway.config.training import BatchWarmupConfig
from headway.data.permutation import permuted


class Draw(NamedTuple):
    """One row of a batch: its index, and the epoch it is drawn in."""

    epoch: int
    row: int


def random_generator(*key: int) -> np.random.Generator:
    """A generator (Philox, Salmon et al. 2011) that depends on nothing but the key."""
    seed = np.random.SeedSequence(key)
    return np.random.Generator(np.random.Philox(seed))


def derived_seed(*key: int) -> int:
    """A 32-bit seed for other generators that depends on nothing but the key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def epoch_rows(seed: int, epoch: int, places: np.ndarray, rows: int) -> np.ndarray:
    """The rows at some places of the order of an epoch, in which each row is once; all int64."""
    return permuted(places, rows, seed, epoch)


class BatchSizes(NamedTuple):
    """How many rows each step draws: `full`, after growing from `start` over the first steps.

    Attributes:
        full: rows of a step after warm-up.
        start: rows of the first step of warm-up.
        warmup_steps: steps until `full` is reached; 0 for none.
        first_step: steps of the run before the first one here, which is a later phase's.
        rows_before: rows that an earlier phase drew, if this one goes on after them.
    """

    full: int
    start: int = 0
    warmup_steps: int = 0
    first_step: int = 0
    rows_before: int = 0

    @classmethod
    def of_run(
        cls, full: int, warmup: BatchWarmupConfig | None, total_steps: int, first_step: int = 0
    ) -> BatchSizes:
        """Those of a run of so many steps, or of the phase that begins after `first_step` of them."""
        if warmup is None:
            return cls(full)
        return cls(full, min(warmup.start, full), round(warmup.fraction * total_steps), first_step)

    def of_step(self, step: int) -> int:
        """Rows of one step."""
        step += self.first_step
        if step >= self.warmup_steps:
            return self.full
        # To the nearest: a whole warm-up draws as many rows as steps of the mean of both ends would.
        twice_grown = 2 * (self.full - self.start) * step
        return self.start + (twice_grown + self.warmup_steps) // (2 * self.warmup_steps)

    def before_step(self, step: int) -> int:
        """Rows of all steps before one."""
        growing = min(step, max(0, self.warmup_steps - self.first_step))
        grown = sum(self.of_step(s) for s in range(growing))
        return self.rows_before + grown + (step - growing) * self.full


def rows_of_step(seed: int, step: int, batch: BatchSizes, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and rows of global batch number `step`, counted from 0; int64, shape (rows of the step,).

    Batches run through the orders of the epochs without a gap, so each row is drawn exactly once an epoch,
    and a batch may span two epochs.
    """
    first = batch.before_step(step)
    epochs, positions = np.divmod(np.arange(first, first + batch.of_step(step)), rows)
    drawn = [epoch_rows(seed, int(epoch), positions[epochs == epoch], rows) for epoch in np.unique(epochs)]
    return epochs, np.concatenate(drawn)


def deal(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Deal rows into parts that have about the same number of tokens.

    The longest rows go first, and the order of the parts turns round each time: 0, 1, 2, 2, 1, 0, 0, ….
    For example, rows of 4, 1, 3 and 2 tokens are dealt into two parts of 5 tokens each:

        order    [0, 2, 3, 1]     longest first: 4, 3, 2, 1 tokens
        owner    [0, 1, 1, 0]
        returned [0, 1], [2, 3]   4 + 1 and 3 + 2 tokens

    Args:
        lengths: int, shape (rows,): tokens of each row.
        parts: how many parts to make.

    Returns:
        For each part the int64 indices of its rows, ascending. Each row is in exactly one part.
    """
    order = np.argsort(-lengths, kind="stable")
    by_owner = np.lexsort((order, _owners(len(order), parts)))
    bounds = np.cumsum(dealt_sizes(len(order), parts))[:-1]
    return np.split(order[by_owner], bounds)


def dealt_sizes(places: int, parts: int) -> list[int]:
    """How many of so many places `deal` gives to each part."""
    return np.bincount(_owners(places, parts), minlength=parts).tolist()


def _owners(places: int, parts: int) -> np.ndarray:
    """The part that each place goes to, the longest first: 0, 1, 2, 2, 1, 0, 0, …."""
    turns = np.arange(places) % (2 * parts)
    return np.minimum(turns, 2 * parts - 1 - turns)


def parts_of(rank: int, world_size: int, parts: int) -> range:
    """The parts of a global batch that one worker computes, at least one.

    Dealing a batch into more parts than there are workers follows Or et al. 2022, "VirtualFlow".
    """
    return range(rank * parts // world_size, (rank + 1) * parts // world_size)
