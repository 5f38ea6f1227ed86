"""Rows of several corpora mixed in every batch, in fixed proportions; still a pure function of (seed, step).

All rows that a run draws stand in one line, which steps cut into batches. A pattern of 4,096 places, which
repeats, says which corpus each place belongs to: of a pattern for weights 3 and 1, the first places are

    pattern      [0, 0, 1, 0, 0, 0, 1, 0, …]
    draw         [0, 1, 0, 2, 3, 4, 1, 5, …]    the draw's number in its corpus

so each corpus has its own line of draws, and its place in it follows from the place in the whole line by a
division. A corpus' line runs through its own epochs: each of its rows once, in a random order, then each once
again in another order, however large the other corpora are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from headway.data.batch import Batch
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.sampling import BatchSizes, deal, dealt_sizes, parts_of, rows_of_step

PATTERN = 4096
"""Places until the pattern repeats; weights are rounded to multiples of one in so many."""


class MixedBatches:
    """Batches of several sources of rows.

    Args:
        sources: of one tokenizer; each with a seed of its own, so that their masks differ.
        weights: rows of each source, in proportion; 0 for none.
        batch_sizes: rows of each step, of all sources together.
        drawn_before: rows of each source that an earlier phase drew, int64 of shape (sources,); this phase
            goes on after them.
    """

    def __init__(
        self,
        sources: Sequence[PretrainingBatches],
        weights: Sequence[float],
        batch_sizes: BatchSizes,
        drawn_before: np.ndarray | None = None,
    ) -> None:
        self.sources = sources
        self.batch_sizes = batch_sizes
        self.pattern = pattern_of(weights)
        none = np.zeros(len(sources), np.int64)
        self.drawn_before = none if drawn_before is None else drawn_before
        self._quotas = np.bincount(self.pattern, minlength=len(sources))
        # How many of the first n places belong to each source, shape (PATTERN + 1, sources).
        owners = self.pattern[:, None] == np.arange(len(sources))
        self._before = np.concatenate([none[None], np.cumsum(owners, axis=0)])
        self._first_rows = np.cumsum([0, *(source.rows for source in sources[:-1])])

    @property
    def rows(self) -> int:
        """Rows of all sources together."""
        return sum(source.rows for source in self.sources)

    @property
    def max_length(self) -> int:
        """Tokens of a sequence at most."""
        return self.sources[0].max_length

    @property
    def truncated_fraction(self) -> float:
        """See `PretrainingBatches`; of the text in a batch."""
        return float(self._fractions @ [source.truncated_fraction for source in self.sources])

    @property
    def one_sentence_fraction(self) -> float:
        """See `PretrainingBatches`; of the rows in a batch."""
        return float(self._fractions @ [source.one_sentence_fraction for source in self.sources])

    @property
    def _fractions(self) -> np.ndarray:
        return self._quotas / PATTERN

    def drawn(self, places: int) -> np.ndarray:
        """How many of the first rows each source gives, int64, shape (sources,); earlier phases included."""
        whole, rest = divmod(places, PATTERN)
        return self.drawn_before + whole * self._quotas + self._before[rest]

    def drawn_until(self, step: int) -> np.ndarray:
        """How many rows of each source all steps before one draw, int64; earlier phases included."""
        return self.drawn(self.batch_sizes.before_step(step))

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        owners, epochs, rows = self._draws(step)
        lengths = np.zeros(len(rows), np.int64)
        for number, source in enumerate(self.sources):
            lengths[owners == number] = source.lengths[rows[owners == number]]
        dealt = deal(lengths, parts)
        mine = [dealt[part] for part in parts_of(rank, world_size, parts)]
        return [self._batch(owners[part], epochs[part], rows[part]) for part in mine]

    def _draws(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The source, epoch and row of each place of a step; int64, shape (rows of the step,)."""
        first = self.batch_sizes.before_step(step)
        places = np.arange(first, first + self.batch_sizes.of_step(step))
        owners = self.pattern[places % PATTERN]
        epochs, rows = np.zeros_like(places), np.zeros_like(places)
        begun = self.drawn(first)
        for number, source in enumerate(self.sources):
            mine = owners == number
            # A source's draws in a step follow each other.
            line = BatchSizes(int(mine.sum()), rows_before=int(begun[number]))
            if line.full:
                epochs[mine], rows[mine] = rows_of_step(source.seed, 0, line, source.rows)
        return owners, epochs, rows

    def _batch(self, owners: np.ndarray, epochs: np.ndarray, rows: np.ndarray) -> Batch:
        """The sequences of some rows, source after source."""
        made = [
            (int(first), source.batch(epochs[owners == number], rows[owners == number]))
            for number, (source, first) in enumerate(zip(self.sources, self._first_rows, strict=True))
            if (owners == number).any()
        ]
        return joined([batch for _, batch in made], [first for first, _ in made])

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """See `BatchSource`."""
        a_row = self.sources[0].sequences_a_row
        return [size * a_row for size in dealt_sizes(self.batch_sizes.of_step(step), parts)]

    def steps_an_epoch(self, parts: int) -> float:
        """Steps in which as many rows are drawn as there are in all sources."""
        return self.rows / self.batch_sizes.full

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """See `BatchSource`."""
        lengths = np.concatenate([source.lengths[np.arange(source.rows)] for source in self.sources])
        mine = np.argsort(lengths, kind="stable")[rank::world_size]
        for start in range(0, len(mine), batch_size):
            chosen = mine[start : start + batch_size]
            owners = np.searchsorted(self._first_rows, chosen, side="right") - 1
            yield self._batch(owners, np.zeros_like(chosen), chosen - self._first_rows[owners])


def pattern_of(weights: Sequence[float]) -> np.ndarray:
    """The source of each of `PATTERN` places, int64: as many as its weight says, spread out evenly."""
    shares = np.asarray(weights, float) / sum(weights) * PATTERN
    quotas = np.where(shares > 0, np.maximum(np.floor(shares), 1), 0).astype(np.int64)
    # What rounding leaves over goes to those that lost most by it; what is too much comes from the largest.
    while (missing := PATTERN - int(quotas.sum())) != 0:
        chosen = np.argmax(shares - quotas) if missing > 0 else np.argmax(quotas)
        quotas[chosen] += 1 if missing > 0 else -1
    owners = np.repeat(np.arange(len(quotas)), quotas)
    numbers = np.concatenate([np.arange(quota) for quota in quotas])
    return owners[np.argsort((numbers + 0.5) / quotas[owners], kind="stable")]


def joined(batches: Sequence[Batch], first_rows: Sequence[int]) -> Batch:
    """Batches end to end as one; rows are numbered from `first_rows` on."""
    tokens = np.cumsum([0, *(len(batch.input_ids) for batch in batches[:-1])])
    positions = [batch.masked_positions + int(before) for batch, before in zip(batches, tokens, strict=True)]
    rows = [batch.row_ids + first for batch, first in zip(batches, first_rows, strict=True)]
    return Batch.of(
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        token_type_ids=torch.cat([batch.token_type_ids for batch in batches]),
        lengths=torch.cat([batch.lengths for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        masked_positions=torch.cat(positions),
        masked_labels=torch.cat([batch.masked_labels for batch in batches]),
        row_ids=torch.cat(rows),
    )
