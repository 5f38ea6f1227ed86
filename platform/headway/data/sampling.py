"""Which rows each step trains on: a pure function of the seed and the step."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One row of a batch: its index, and the epoch it is drawn in."""

    epoch: int
    row: int


def random_generator(*key: int) -> np.random.Generator:
    """A generator that depends on the key alone (Philox, Salmon et al. 2011), not on earlier draws."""
    seed = np.random.SeedSequence(key)
    return np.random.Generator(np.random.Philox(seed))


def derived_seed(*key: int) -> int:
    """A 32-bit seed for other generators, a function of the key alone."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order of an epoch: every row once."""
    return random_generator(seed, epoch).permutation(rows)


class BatchSizes(NamedTuple):
    """How many rows each step draws: `full`, after growing from `start` over the first steps.

    Attributes:
        full: rows of a step after warm-up.
        start: rows of the first step.
        warmup_steps: steps until `full` is reached; 0 for none.
    """

    full: int
    start: int = 0
    warmup_steps: int = 0

    def of_step(self, step: int) -> int:
        """Rows of one step."""
        if step >= self.warmup_steps:
            return self.full
        return self.start + (self.full - self.start) * step // self.warmup_steps

    def before_step(self, step: int) -> int:
        """Rows of all steps before one."""
        growing = min(step, self.warmup_steps)
        return sum(self.of_step(s) for s in range(growing)) + (step - growing) * self.full


def rows_of_step(seed: int, step: int, batch: BatchSizes, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and rows of global batch number `step`, counted from 0; int64, shape (rows of the step,).

    Batches follow one another through the epochs' orders without a gap, so each row is drawn exactly
    once an epoch, and a batch may span two.
    """
    first = batch.before_step(step)
    epochs, places = np.divmod(np.arange(first, first + batch.of_step(step)), rows)
    drawn = [epoch_order(seed, int(epoch), rows)[places[epochs == epoch]] for epoch in np.unique(epochs)]
    return epochs, np.concatenate(drawn)


def deal(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Share places out so that the parts carry about the same number of tokens.

    The longest go first, to and fro: 0, 1, 2, 2, 1, 0, 0, ….

    Args:
        lengths: int, shape (places,).
        parts: how many shares.

    Returns:
        Int64 places of each share, ascending; together each place once.
    """
    order = np.argsort(-lengths, kind="stable")
    turns = np.arange(len(order)) % (2 * parts)
    owner = np.minimum(turns, 2 * parts - 1 - turns)
    by_owner = np.lexsort((order, owner))
    bounds = np.cumsum(np.bincount(owner, minlength=parts))[:-1]
    return np.split(order[by_owner], bounds)


def parts_of(rank: int, world_size: int, parts: int) -> range:
    """The parts of a global batch that one worker computes; each worker has one at least.

    A batch dealt into more parts than workers is the idea of virtual workers (Or et al. 2022, VirtualFlow).
    """
    return range(rank * parts // world_size, (rank + 1) * parts // world_size)
