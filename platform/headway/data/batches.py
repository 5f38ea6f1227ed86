"""Batches of unpadded sequences, each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.config import MaskingConfig
from headway.data.masking import Vocabulary, mask_sequence
from headway.data.pairs import check_pairable, plan_rows, sentence_pair
from headway.data.sampling import Draw, deal, draws_of_step, random_generator
from headway.data.store import TokenStore
from headway.data.tokenizer import continuation_table


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, without padding.

    Attributes:
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,): 0 in segment A, 1 in segment B.
        lengths: int64, shape (sequences,).
        labels: int64, shape (sequences,): a class, or whether B follows A; 0 where there is neither.
        masked_places: int64, shape (masked,): hidden tokens, by place in the row.
        masked_labels: int64, shape (masked,): what they were.
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
    label: int
    masked_places: np.ndarray
    masked_labels: np.ndarray
    row: int


class BatchSource(Protocol):
    """What the training loop draws from."""

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        ...

    def micro_batches(self, step: int, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """What one worker computes in a step; over all workers, the global batch of that step."""
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
        labels=torch.tensor([sequence.label for sequence in sequences]),
        masked_places=joined(
            [sequence.masked_places + start for sequence, start in zip(sequences, starts, strict=True)]
        ),
        masked_labels=joined([sequence.masked_labels for sequence in sequences]),
        row_ids=torch.tensor([sequence.row for sequence in sequences]),
    )


class _DealtBatches:
    """Shares global batches out over workers and micro-batches; subclasses make the sequences."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.lengths)

    def sequence(self, draw: Draw) -> Example:
        """The sequence that a row gives in an epoch."""
        raise NotImplementedError

    def micro_batches(self, step: int, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """See `BatchSource`."""
        draws = draws_of_step(self.seed, step, self.batch_size, self.rows)
        lengths = self.lengths[[draw.row for draw in draws]]
        parts = deal(lengths, world_size * accumulation)
        mine = parts[rank * accumulation : (rank + 1) * accumulation]
        return [collate([self.sequence(draws[place]) for place in part]) for part in mine]

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """See `BatchSource`."""
        mine = np.argsort(self.lengths, kind="stable")[rank::world_size]
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            yield collate([self.sequence(Draw(0, int(row))) for row in rows])


class PretrainingBatches(_DealtBatches):
    """Masked sequences, in pairs for next-sentence prediction; new pairs and masks each epoch."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        masking: MaskingConfig,
        next_sentence: bool,
        batch_size: int,
        seed: int,
        most_rows: int | None = None,
    ) -> None:
        if next_sentence:
            check_pairable(store)
        self.store = store
        self.masking = masking
        self.next_sentence = next_sentence
        self.budget = max_length - (3 if next_sentence else 2)
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
        super().__init__(lengths, batch_size, seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's segments, masked; a function of (seed, epoch, row)."""
        rng = random_generator(self.seed, draw.epoch, draw.row)
        label = 0
        if self.next_sentence:
            first, second, label = sentence_pair(self.store, self.plan, draw.row, self.budget, rng)
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


class LabelledBatches(_DealtBatches):
    """Whole texts with their classes, framed as [CLS] text [SEP] and cut at `max_length` tokens."""

    def __init__(
        self,
        texts: Sequence[np.ndarray],
        labels: np.ndarray,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.texts = texts
        self.labels = labels
        self.room = max_length - 2
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        lengths = np.asarray([min(len(text), self.room) for text in texts])
        super().__init__(lengths, batch_size, seed)

    def sequence(self, draw: Draw) -> Example:
        """The row's text; the same in every epoch."""
        ids = np.concatenate([[self.cls], self.texts[draw.row][: self.room], [self.sep]])
        nothing = np.empty(0, np.int64)
        label = int(self.labels[draw.row])
        return Example(ids, np.zeros(len(ids), np.int64), label, nothing, nothing, draw.row)
