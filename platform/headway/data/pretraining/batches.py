"""Batches to pretrain on: masked rows of a token store, single or split into pairs."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from headway.config.pretrain import MaskingConfig
from headway.data.batch import Batch
from headway.data.batches import DealtBatches
from headway.data.corpus.store import TokenStore
from headway.data.corpus.words import word_table
from headway.data.pretraining.counter_random import row_keys
from headway.data.pretraining.masking import Vocabulary, mask_rows
from headway.data.pretraining.pairs import PairObjective, PairSplitter, Segments, check_pairable
from headway.data.pretraining.ragged import Ragged
from headway.data.pretraining.row_plan import SentenceRows, TokenRows, plan_sentence_rows, plan_token_rows
from headway.data.pretraining.views import two_parts
from headway.data.sampling import BatchSizes, random_generator

Plan = TypeVar("Plan", TokenRows, SentenceRows)


class PretrainingBatches(DealtBatches):
    """Masked sequences, single or in pairs, with new pairs and masks in each epoch unless masks are `static`.

    Without pairs, an epoch holds every token of the store exactly once. With pairs, segments are truncated as
    Devlin et al. do, and half of them are random. In two parts, a row is two sequences that follow each other
    in the text.

    Attributes:
        max_length: tokens of a sequence at most, special ones included.
        truncated_fraction: the fraction of all tokens that truncation leaves out of an epoch; 0.0 without
            pairs.
        one_sentence_fraction: the fraction of all rows that are one sentence, which pairs cut in two; 0.0
            without pairs.
    """

    def __init__(
        self,
        store: TokenStore,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        masking: MaskingConfig,
        pairs: PairObjective | None,
        in_two_parts: bool = False,
        batch_sizes: BatchSizes,
        seed: int,
        batch_tokens: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        if pairs is not None:
            check_pairable(store)
        self.max_length = max_length
        self.masking = masking
        self.vocabulary = _vocabulary(tokenizer, masking)
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._store = store
        self._segments: Segments | None = None
        self._splitter: PairSplitter | None = None
        self.truncated_fraction = self.one_sentence_fraction = 0.0
        self.sequences_a_row = 2 if in_two_parts else 1
        if pairs is None:
            budget = max_length - 2
            rows = _some(plan_token_rows(store, budget * self.sequences_a_row), max_rows)
            self._segments = Segments(*rows)
            # A row of one token is both of its parts.
            lengths = np.maximum(rows.lengths, self.sequences_a_row)
        else:
            budget = max_length - 3
            planned = _some(plan_sentence_rows(store, budget), max_rows)
            self._splitter = PairSplitter(store, planned, budget, pairs)
            lengths = self._splitter.longest
            truncated = np.maximum(planned.lengths - budget, 0).sum()
            self.truncated_fraction = float(truncated / planned.lengths.sum())
            self.one_sentence_fraction = float((planned.last - planned.first == 1).mean())
        super().__init__(lengths + (max_length - budget) * self.sequences_a_row, batch_sizes, seed)
        self.batch_tokens = batch_tokens
        self.pad_token = tokenizer.pad_token_id or 0

    def batch(self, epochs: np.ndarray, rows: np.ndarray) -> Batch:
        """The masked sequences of some rows; each depends only on (seed, epoch, row)."""
        epochs = np.zeros_like(epochs) if self.masking.static else epochs
        keys = row_keys(self.seed, epochs, rows)
        labels = np.zeros(len(rows) * self.sequences_a_row, np.int64)
        if self._splitter is not None:
            first, second, labels = self._splitter.pairs(rows, keys)
            segments = [first, second]
        else:
            assert self._segments is not None
            segments = [Segments(*(column[rows] for column in self._segments))]
            if self.sequences_a_row == 2:
                segments = [two_parts(segments[0], self.max_length - 2, keys)]
                rows, epochs = np.repeat(rows, 2), np.repeat(epochs, 2)
                keys = row_keys(self.seed, epochs, 2 * rows + np.tile([0, 1], len(rows) // 2))
        input_ids, token_type_ids, lengths = self._framed(segments)
        masked = mask_rows(input_ids, Ragged(lengths), keys, self.masking, self.vocabulary)
        return Batch.of(
            input_ids=torch.from_numpy(masked.input_ids),
            token_type_ids=torch.from_numpy(token_type_ids),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(labels),
            masked_positions=torch.from_numpy(masked.positions),
            masked_labels=torch.from_numpy(masked.labels),
            row_ids=torch.from_numpy(rows.astype(np.int64)),
        )

    def _framed(self, segments: list[Segments]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] of each row: token ids, types, and the rows' lengths."""
        # The segments of each row follow one another; [CLS] is part of the first, and [SEP] of each.
        starts = np.stack([segment.starts for segment in segments], 1)
        lengths = np.stack([segment.lengths for segment in segments], 1) + 1
        starts[:, 0] -= 1
        lengths[:, 0] += 1
        framed = Ragged(lengths.ravel())
        # Special tokens replace whatever is beside a segment in the store.
        sources = np.arange(framed.total) + np.repeat(starts.ravel() - framed.starts, framed.lengths)
        # A plain view of the mapped file; indexing the memmap itself would make each result a memmap.
        tokens = np.asarray(self._store.tokens)
        input_ids = tokens.take(sources, mode="clip").astype(np.int64)
        input_ids[framed.starts[:: len(segments)]] = self.cls
        input_ids[framed.ends - 1] = self.sep
        types = np.tile(np.arange(len(segments)), len(lengths))
        return input_ids, np.repeat(types, framed.lengths), lengths.sum(1)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, masking: MaskingConfig) -> Vocabulary:
    special = np.zeros(len(tokenizer), bool)
    special[tokenizer.all_special_ids] = True
    words = word_table(tokenizer) if masking.whole_words else None
    return Vocabulary(len(tokenizer), tokenizer.mask_token_id, special, words)


def _some(plan: Plan, limit: int | None) -> Plan:
    """Up to `limit` rows of a plan, drawn at random, but the same each time."""
    if limit is None or limit >= len(plan.lengths):
        return plan
    chosen = np.sort(random_generator(0).permutation(len(plan.lengths))[:limit])
    return type(plan)(*(column[chosen] for column in plan))
