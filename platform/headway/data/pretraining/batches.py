"""Batches to pretrain on: masked rows of a token store, single or split into pairs."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from headway.config.pretrain import MaskingConfig
from headway.data.batch import Batch
from headway.data.batches import DealtBatches
from headway.data.corpus.store import TokenStore
from headway.data.corpus.words import word_table
from headway.data.permutation import permuted
from headway.data.pretraining.counter_random import row_keys
from headway.data.pretraining.masking import Vocabulary, mask_rows
from headway.data.pretraining.pairs import PairObjective, PairSplitter, Segments, check_pairable
from headway.data.pretraining.ragged import Ragged
from headway.data.pretraining.row_plan import TokenRows
from headway.data.pretraining.stored_plan import PlanFacts, PlannedRows, RowLengths, planned_rows, some_rows
from headway.data.pretraining.views import two_parts
from headway.data.sampling import BatchSizes


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
        self._rows: PlannedRows[TokenRows] | None = None
        self._splitter: PairSplitter | None = None
        self.truncated_fraction = self.one_sentence_fraction = 0.0
        self.sequences_a_row = 2 if in_two_parts else 1
        added = 2 if pairs is None else 3
        if pairs is None:
            budget = (max_length - added) * self.sequences_a_row
            rows, facts = _some(*planned_rows(store, "tokens", budget), budget, max_rows)
            self._rows = rows
        else:
            budget = max_length - added
            rows, facts = _some(*planned_rows(store, "sentences", budget), budget, max_rows)
            self._splitter = PairSplitter(store, rows, budget, pairs)
            self.truncated_fraction = facts.left_out / facts.tokens
            self.one_sentence_fraction = facts.one_sentence / facts.rows
        lengths = RowLengths(
            rows,
            facts.longest,
            at_least=self.sequences_a_row,  # a row of one token is both of its parts
            at_most=budget,
            added=added * self.sequences_a_row,
        )
        super().__init__(lengths, batch_sizes, seed)
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
            assert self._rows is not None
            segments = [Segments(*self._rows.of(rows))]
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


def _some(
    rows: PlannedRows, facts: PlanFacts, budget: int, limit: int | None
) -> tuple[PlannedRows, PlanFacts]:
    """Up to `limit` rows of a plan, drawn at random, but the same each time."""
    if limit is None or limit >= rows.num_rows:
        return rows, facts
    chosen = np.sort(permuted(np.arange(limit), rows.num_rows, 0, 0))
    return some_rows(rows, chosen, budget)
