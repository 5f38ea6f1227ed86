"""Batches of unpadded sequences, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.data.batch import Batch
from headway.data.framing import Framing, cut_longest_first
from headway.data.sampling import BatchSizes, Draw, deal, dealt_sizes, parts_of, rows_of_step
from headway.data.token_packing import Lengths, TokenPacking


@dataclass(frozen=True)
class Example:
    """One sequence of a batch; the names are those of `Batch`."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int | float | np.ndarray
    masked_positions: np.ndarray
    masked_labels: np.ndarray
    row: int


class BatchSource(Protocol):
    """Where the training loop gets its batches."""

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        ...

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """The micro-batches that one worker computes in a step.

        The global batch is dealt into `parts`, however many workers there are, and each worker takes some of
        them. So the parts, and what depends on them, are the same in a group of any size.
        """
        ...

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """How many sequences each part of a step has."""
        ...

    def steps_an_epoch(self, parts: int) -> float:
        """Steps that it takes to see every row once, if each step is dealt into `parts`."""
        ...

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """One worker's part of all rows, the same each time, for evaluation."""
        ...


class WrappedBatches:
    """The batches of another source; subclasses add to them."""

    def __init__(self, batches: BatchSource) -> None:
        self._batches = batches

    @property
    def rows(self) -> int:
        """See `BatchSource`."""
        return self._batches.rows

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        return self._batches.micro_batches(step, rank, world_size, parts)

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """See `BatchSource`."""
        return self._batches.part_sizes(step, parts)

    def steps_an_epoch(self, parts: int) -> float:
        """See `BatchSource`."""
        return self._batches.steps_an_epoch(parts)

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """See `BatchSource`."""
        return self._batches.in_order(rank, world_size, batch_size)


def collate(sequences: Sequence[Example]) -> Batch:
    """Join sequences end to end."""
    lengths = np.asarray([len(sequence.input_ids) for sequence in sequences], np.int64)
    masked = np.asarray([len(sequence.masked_positions) for sequence in sequences], np.int64)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(sequence, name) for sequence in sequences]).astype(np.int64)

    positions = joined("masked_positions") + np.repeat(np.cumsum(lengths) - lengths, masked)
    return Batch.of(
        input_ids=torch.from_numpy(joined("input_ids")),
        token_type_ids=torch.from_numpy(joined("token_type_ids")),
        lengths=torch.from_numpy(lengths),
        labels=torch.from_numpy(np.stack([np.asarray(sequence.label) for sequence in sequences])),
        masked_positions=torch.from_numpy(positions),
        masked_labels=torch.from_numpy(joined("masked_labels")),
        row_ids=torch.tensor([sequence.row for sequence in sequences]),
    )


class DealtBatches:
    """Deals global batches out to workers and micro-batches.

    Subclasses make the sequence of a row, or several, or override `batch` to make all of them at once.

    Attributes:
        lengths: the largest number of tokens that each row's sequences can have.
        batch_tokens: positions of a step, instead of a number of rows. Rows are then packed, in order, into
            micro-batches of equally many positions, and the rest of each is padding.
        pad_token: the token that padding is made of. Nothing attends to padding, and nothing is learnt from
            it.
        sequences_a_row: how many sequences a row gives.
    """

    batch_tokens: int | None = None
    pad_token = 0
    sequences_a_row = 1

    def __init__(self, lengths: Lengths, batch_sizes: BatchSizes, seed: int) -> None:
        self.lengths: Any = lengths  # an array, if whoever made the batches has one
        self.batch_sizes = batch_sizes
        self.seed = seed
        self._packings: dict[int, TokenPacking] = {}

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.lengths)

    def batch(self, epochs: np.ndarray, rows: np.ndarray) -> Batch:
        """The sequences of some rows (int64, each with its epoch), end to end in that order."""
        draws = [Draw(int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
        return collate([sequence for draw in draws for sequence in self.sequences(draw)])

    def sequence(self, draw: Draw) -> Example:
        """The sequence of a row in an epoch."""
        raise NotImplementedError

    def sequences(self, draw: Draw) -> list[Example]:
        """All sequences of a row, if it can have more than one."""
        return [self.sequence(draw)]

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        if self.batch_tokens is not None:
            packing = self._packing(parts)
            numbers = [step * parts + part for part in parts_of(rank, world_size, parts)]
            made = [self.batch(*packing.rows(number)) for number in numbers]
            return [batch.padded(packing.capacity, self.pad_token) for batch in made]
        epochs, rows = rows_of_step(self.seed, step, self.batch_sizes, self.rows)
        dealt = deal(self.lengths[rows], parts)
        mine = [dealt[part] for part in parts_of(rank, world_size, parts)]
        return [self.batch(epochs[part], rows[part]) for part in mine]

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """See `BatchSource`."""
        if self.batch_tokens is not None:
            numbers = range(step * parts, (step + 1) * parts)
            rows = [len(self._packing(parts).rows(number)[1]) for number in numbers]
        else:
            rows = dealt_sizes(self.batch_sizes.of_step(step), parts)
        return [size * self.sequences_a_row for size in rows]

    def steps_an_epoch(self, parts: int) -> float:
        """See `BatchSource`."""
        if self.batch_tokens is not None:
            return self._packing(parts).micro_batches_an_epoch() / parts
        return self.rows / self.batch_sizes.full

    def _packing(self, parts: int) -> TokenPacking:
        assert self.batch_tokens is not None
        capacity, longest = self.batch_tokens // parts, int(self.lengths.max())
        if capacity not in self._packings:
            if longest > capacity:
                raise ConfigError(
                    f"batch_tokens {self.batch_tokens} is too small: each of {parts} micro-batches has "
                    f"{capacity} positions, and the longest row has {longest} tokens"
                )
            self._packings[capacity] = TokenPacking(self.lengths, self.seed, capacity)
        return self._packings[capacity]

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """See `BatchSource`."""
        mine = np.argsort(self.lengths[np.arange(self.rows)], kind="stable")[rank::world_size]
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            yield self.batch(np.zeros_like(rows), rows)


class LabelledBatches(DealtBatches):
    """Whole texts, or pairs of texts, with labels; truncated to `max_length` tokens."""

    def __init__(
        self,
        texts: Sequence[np.ndarray],
        labels: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        second_texts: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Take the int32 tokens of each text, and int64 or float32 labels of shape (texts, …)."""
        self.texts = texts
        self.second_texts = second_texts
        self.labels = labels
        self.framing = Framing.of(tokenizer)
        self.max_tokens = max_length - (self.framing.single if second_texts is None else self.framing.pair)
        sizes = np.asarray([len(text) for text in texts], np.int64)
        if second_texts is not None:
            sizes += np.asarray([len(text) for text in second_texts], np.int64)
        lengths = np.minimum(sizes, self.max_tokens) + max_length - self.max_tokens
        super().__init__(lengths, BatchSizes(batch_size), seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's text or pair; the same in every epoch."""
        text = self.texts[draw.row]
        if self.second_texts is None:
            ids, types = self.framing.one(text[: self.max_tokens])
        else:
            second = self.second_texts[draw.row]
            kept, kept_of_second = cut_longest_first(len(text), len(second), self.max_tokens)
            ids, types = self.framing.two(text[:kept], second[:kept_of_second])
        nothing = np.empty(0, np.int64)
        return Example(ids, types, self.labels[draw.row], nothing, nothing, draw.row)
