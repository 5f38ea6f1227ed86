"""Batches made row by row, as Headway made them up to commit 853e141: the baseline of `loader_speed`.

Kept as it was, but for names and for what the rest of the package still has. It also keeps that code's two
defects: without pairs, what a row holds beyond its budget is dropped, and pairs look like their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from headway.config.pretrain import MaskingConfig
from headway.data.corpus.store import TokenStore
from headway.data.pretraining.row_plan import SentenceRows, plan_sentence_rows
from headway.data.sampling import BatchSizes, deal, random_generator, rows_of_step


class _Vocabulary(NamedTuple):
    size: int
    mask: int
    special: np.ndarray


class _Masked(NamedTuple):
    input_ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


class _Example(NamedTuple):
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    label: int
    masked_positions: np.ndarray
    masked_labels: np.ndarray
    row: int


class RowByRowBatches:
    """One micro-batch a step of masked rows, or of pairs for next-sentence prediction."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        pairs: Literal["nsp"] | None,
        batch_size: int,
    ) -> None:
        self.store = store
        self.masking = MaskingConfig()
        self.pairs = pairs
        self.batch_size = batch_size
        self.budget = max_length - (2 if pairs is None else 3)
        self.cls, self.sep = np.int32(tokenizer.cls_token_id), np.int32(tokenizer.sep_token_id)
        special = np.sort(np.asarray(tokenizer.all_special_ids, dtype=np.int32))
        self.vocabulary = _Vocabulary(len(tokenizer), tokenizer.mask_token_id, special)
        self.plan = plan_sentence_rows(store, self.budget)
        self.lengths = np.minimum(self.plan.lengths, self.budget)

    def batch(self, step: int) -> dict[str, Tensor]:
        """The batch of a step."""
        epochs, rows = rows_of_step(0, step, BatchSizes(self.batch_size), len(self.lengths))
        [part] = deal(self.lengths[rows], 1)
        return _collate([self._sequence(int(epochs[at]), int(rows[at])) for at in part])

    def _sequence(self, epoch: int, row: int) -> _Example:
        rng = random_generator(0, epoch, row)
        label = 0
        if self.pairs is not None:
            first, second, label = _sentence_pair(self.store, self.plan, row, self.budget, rng)
            head = np.concatenate([[self.cls], first, [self.sep]])
            tail = np.concatenate([second, [self.sep]])
        else:
            span = self.store.span(int(self.plan.first[row]), int(self.plan.last[row]))
            head = np.concatenate([[self.cls], span[: self.budget], [self.sep]])
            tail = np.empty(0, np.int32)
        token_types = np.repeat([0, 1], [len(head), len(tail)])
        masked = _mask_sequence(
            np.concatenate([head, tail]).astype(np.int32), self.masking, self.vocabulary, rng
        )
        return _Example(masked.input_ids, token_types, label, masked.places, masked.labels, row)


def _collate(sequences: Sequence[_Example]) -> dict[str, Tensor]:
    lengths = np.asarray([len(sequence.input_ids) for sequence in sequences])
    starts = np.cumsum(lengths) - lengths

    def joined(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int64))

    return {
        "input_ids": joined([sequence.input_ids for sequence in sequences]),
        "token_type_ids": joined([sequence.token_type_ids for sequence in sequences]),
        "lengths": torch.from_numpy(lengths),
        "labels": torch.from_numpy(np.stack([np.asarray(sequence.label) for sequence in sequences])),
        "masked_positions": joined(
            [sequence.masked_positions + start for sequence, start in zip(sequences, starts, strict=True)]
        ),
        "masked_labels": joined([sequence.masked_labels for sequence in sequences]),
        "row_ids": torch.tensor([sequence.row for sequence in sequences]),
    }


def _mask_sequence(
    input_ids: np.ndarray, config: MaskingConfig, vocabulary: _Vocabulary, rng: np.random.Generator
) -> _Masked:
    maskable = np.flatnonzero(~np.isin(input_ids, vocabulary.special))
    wanted = min(len(maskable), max(1, round(config.rate * len(maskable))))
    places = np.sort(rng.permutation(maskable)[:wanted])
    labels = input_ids[places]
    replaced = input_ids.copy()
    replaced[places] = _replacements(labels, vocabulary, rng)
    return _Masked(replaced, places, labels)


def _replacements(labels: np.ndarray, vocabulary: _Vocabulary, rng: np.random.Generator) -> np.ndarray:
    fate = rng.random(len(labels))
    random_tokens = rng.integers(0, vocabulary.size, len(labels), dtype=np.int32)
    unfit = np.isin(random_tokens, vocabulary.special)
    random_tokens[unfit] = labels[unfit]
    return np.select([fate < 0.8, fate < 0.9], [np.int32(vocabulary.mask), random_tokens], labels)


def _sentence_pair(
    store: TokenStore, rows: SentenceRows, row: int, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    first, last = int(rows.first[row]), int(rows.last[row])
    split = first + (1 if last - first == 1 else int(rng.integers(1, last - first)))
    segment_a, segment_b = store.span(first, split), store.span(split, last)
    label = 0
    if last - first == 1 or rng.random() >= 0.5:
        wanted = max(budget - len(segment_a), budget // 4)
        label, segment_b = 1, _random_segment(store, int(rows.document[row]), wanted, rng)
    return *_truncate_pair(segment_a, segment_b, budget, rng), label


def _random_segment(store: TokenStore, document: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    other = int(rng.integers(store.num_documents - 1))
    other += other >= document
    begin, end = int(store.documents[other]), int(store.documents[other + 1])
    start = store.sentences[int(rng.integers(begin, end))]
    return store.tokens[start : min(start + wanted, store.sentences[end])]


def _truncate_pair(
    segment_a: np.ndarray, segment_b: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    half = budget // 2
    room_a = max(half, budget - len(segment_b))
    room_b = max(budget - half, budget - len(segment_a))
    return _shorten(segment_a, room_a, rng), _shorten(segment_b, room_b, rng)


def _shorten(segment: np.ndarray, room: int, rng: np.random.Generator) -> np.ndarray:
    excess = max(0, len(segment) - room)
    from_front = int(rng.integers(excess + 1))
    return segment[from_front : len(segment) - (excess - from_front)]
