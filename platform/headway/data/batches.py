"""Batches of unpadded sequences, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.config.steps import MaskingConfig
from headway.data.framing import Framing, cut_longest_first
from headway.data.masking import Vocabulary, mask_sequence
from headway.data.pairs import PairObjective, check_pairable, plan_rows, sentence_pair
from headway.data.sampling import BatchSizes, Draw, deal, parts_of, random_generator, rows_of_step
from headway.data.store import TokenStore
from headway.data.tokenizer import continuation_table


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, without padding.

    Attributes:
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,): 0 in segment A, 1 in segment B.
        lengths: int64, shape (sequences,).
        labels: int64 or float32, shape (sequences,) or (sequences, …): what is learnt of each sequence: a
            class, a number, whether B follows A; 0 where there is nothing of the kind.
        masked_places: int64, shape (masked,): hidden tokens, or those that have labels, by place in the row.
        masked_labels: int64, shape (masked,): what they were, or their labels.
        row_ids: int64, shape (sequences,): the rows of the data set they come from.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    lengths: Tensor
    labels: Tensor
    masked_places: Tensor
    masked_labels: Tensor
    row_ids: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Example:
    """One sequence of a batch; the names are those of `Batch`."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int | float | np.ndarray
    masked_places: np.ndarray
    masked_labels: np.ndarray
    row: int


class BatchSource(Protocol):
    """What the training loop draws from."""

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        ...

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """What one worker computes in a step; over all workers, the global batch of that step.

        The batch is dealt into `parts` whatever the number of workers, and each takes its share of them;
        so the parts, and what depends on them, stay the same in a group of another size.
        """
        ...

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """One worker's share of every row, the same each time: for evaluation."""
        ...


def collate(sequences: Sequence[Example]) -> Batch:
    """Lay sequences end to end."""
    lengths = np.asarray([len(sequence.input_ids) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64))

    return Batch(
        input_ids=joined([sequence.input_ids for sequence in sequences]),
        token_type_ids=joined([sequence.token_type_ids for sequence in sequences]),
        lengths=torch.from_numpy(lengths),
        labels=torch.from_numpy(np.stack([np.asarray(sequence.label) for sequence in sequences])),
        masked_places=joined(
            [sequence.masked_places + start for sequence, start in zip(sequences, starts, strict=True)]
        ),
        masked_labels=joined([sequence.masked_labels for sequence in sequences]),
        row_ids=torch.tensor([sequence.row for sequence in sequences]),
    )


class DealtBatches:
    """Shares global batches out over workers and micro-batches; subclasses make the sequences."""

    def __init__(self, lengths: np.ndarray, batch_sizes: BatchSizes, seed: int) -> None:
        self.lengths = lengths
        self.batch_sizes = batch_sizes
        self.seed = seed

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.lengths)

    def sequence(self, draw: Draw) -> Example:
        """The sequence that a row gives in an epoch."""
        raise NotImplementedError

    def sequences(self, draw: Draw) -> list[Example]:
        """All sequences that a row gives, where it is more than one."""
        return [self.sequence(draw)]

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        epochs, rows = rows_of_step(self.seed, step, self.batch_sizes, self.rows)
        dealt = deal(self.lengths[rows], parts)
        mine = [dealt[part] for part in parts_of(rank, world_size, parts)]
        return [self._collated([Draw(int(epochs[at]), int(rows[at])) for at in part]) for part in mine]

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """See `BatchSource`."""
        mine = np.argsort(self.lengths, kind="stable")[rank::world_size]
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            yield self._collated([Draw(0, int(row)) for row in rows])

    def _collated(self, draws: Sequence[Draw]) -> Batch:
        return collate([sequence for draw in draws for sequence in self.sequences(draw)])


class PretrainingBatches(DealtBatches):
    """Masked sequences, in pairs if pairs are judged; new pairs each epoch, and new masks unless static."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        masking: MaskingConfig,
        pairs: PairObjective | None,
        batch_sizes: BatchSizes,
        seed: int,
        most_rows: int | None = None,
    ) -> None:
        if pairs is not None:
            check_pairable(store)
        self.store = store
        self.masking = masking
        self.pairs = pairs
        self.budget = max_length - (2 if pairs is None else 3)
        self.cls, self.sep = np.int32(tokenizer.cls_token_id), np.int32(tokenizer.sep_token_id)
        special = np.sort(np.asarray(tokenizer.all_special_ids, dtype=np.int32))
        continues = continuation_table(tokenizer)
        self.vocabulary = Vocabulary(len(tokenizer), tokenizer.mask_token_id, special, continues)
        self.plan = plan_rows(store, self.budget)
        lengths = np.minimum(self.plan.lengths, self.budget)
        if most_rows is not None and most_rows < len(lengths):
            chosen = np.sort(random_generator(0).permutation(len(lengths))[:most_rows])
            self.plan = type(self.plan)(*(column[chosen] for column in self.plan))
            lengths = lengths[chosen]
        super().__init__(lengths, batch_sizes, seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's segments, masked; a function of (seed, epoch, row)."""
        rng = random_generator(self.seed, 0 if self.masking.static else draw.epoch, draw.row)
        label = 0
        if self.pairs is not None:
            first, second, label = sentence_pair(
                self.store, self.plan, draw.row, self.budget, rng, self.pairs
            )
            head = np.concatenate([[self.cls], first, [self.sep]])
            tail = np.concatenate([second, [self.sep]])
        else:
            span = self.store.span(int(self.plan.first[draw.row]), int(self.plan.last[draw.row]))
            head = np.concatenate([[self.cls], span[: self.budget], [self.sep]])
            tail = np.empty(0, np.int32)
        token_types = np.repeat([0, 1], [len(head), len(tail)])
        masked = mask_sequence(
            np.concatenate([head, tail]).astype(np.int32), self.masking, self.vocabulary, rng
        )
        return Example(masked.input_ids, token_types, label, masked.places, masked.labels, draw.row)


class LabelledBatches(DealtBatches):
    """Whole texts, or pairs of them, with what is learnt of each; cut at `max_length` tokens."""

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
        """Take int32 tokens of each text, and labels: int64 or float32, shape (texts, …)."""
        self.texts = texts
        self.second_texts = second_texts
        self.labels = labels
        self.framing = Framing.of(tokenizer)
        self.room = max_length - (self.framing.single if second_texts is None else self.framing.pair)
        sizes = [len(text) for text in texts]
        if second_texts is not None:
            sizes = [size + len(second) for size, second in zip(sizes, second_texts, strict=True)]
        super().__init__(np.minimum(sizes, self.room), BatchSizes(batch_size), seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's text or pair; the same in every epoch."""
        text = self.texts[draw.row]
        if self.second_texts is None:
            ids, types = self.framing.one(text[: self.room])
        else:
            second = self.second_texts[draw.row]
            kept, kept_of_second = cut_longest_first(len(text), len(second), self.room)
            ids, types = self.framing.two(text[:kept], second[:kept_of_second])
        nothing = np.empty(0, np.int64)
        return Example(ids, types, self.labels[draw.row], nothing, nothing, draw.row)
