"""Batches of random tokens, where only their number matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headway.data.batches import Batch


class RandomBatches:
    """Sentences of random lengths and tokens, one token in seven masked; as many tokens on each worker.

    Args:
        vocab_size: of the tokens.
        sequences: in each worker's share of a batch.
        max_length: of a sequence, in tokens; the shortest are half as long.
    """

    def __init__(self, vocab_size: int, sequences: int, max_length: int) -> None:
        self.rows = 1_000_000
        self._vocab_size, self._sequences, self._max_length = vocab_size, sequences, max_length

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `headway.data.batches.BatchSource`."""
        lengths = np.random.default_rng(step).integers(
            self._max_length // 2, self._max_length + 1, self._sequences
        )
        tokens = np.random.default_rng([step, rank]).integers(5, self._vocab_size, lengths.sum())
        ids = torch.from_numpy(tokens)
        masked = torch.arange(0, len(ids), 7)
        labels = torch.zeros(len(lengths), dtype=torch.int64)
        return [
            Batch.of(
                input_ids=ids,
                token_type_ids=torch.zeros_like(ids),
                lengths=torch.from_numpy(lengths),
                labels=labels,
                masked_positions=masked,
                masked_labels=ids[masked],
                row_ids=labels,
            )
        ]

    def part_sizes(self, step: int, parts: int) -> list[int]:
        """See `headway.data.batches.BatchSource`."""
        return [self._sequences] * parts

    def steps_an_epoch(self, parts: int) -> float:
        """See `headway.data.batches.BatchSource`."""
        return self.rows / self._sequences

    def in_order(self, rank: int, world_size: int, batch_size: int) -> Any:
        """See `headway.data.batches.BatchSource`; there is nothing to validate with."""
        return iter(())
