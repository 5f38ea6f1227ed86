"""Each operation on an encoder's hidden states: one tensor on the device, then results on the host.

Nothing is read back from the device but that one tensor. All lengths, and the positions of hidden words, are
known on the host, from which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headway.data.batch import Batch
from headway.engine.inference.encoder import InferenceEncoder
from headway.engine.inference.graph_sizes import ResultRows
from headway.engine.model.heads import (
    answer_logits,
    mean_pooled,
    sequence_logits,
    token_logits,
    vocabulary_logits,
)
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.inference.description import Ability, Description
from headway.inference.packing import Operation, Pack

ROWS: dict[str, ResultRows] = {
    "embed": "sequences",
    "classify": "sequences",
    "tokens": "tokens",
    "answer": "tokens",
    "fill-mask": "masked",
}
"""What the rows of `HeadOutputs` stand for: a sequence, a token, or a hidden word each."""


def operations_of(abilities: Sequence[Ability]) -> tuple[str, ...]:
    """The operations in `ROWS` that a model of these abilities is asked for."""
    return ("embed", *(name for name in ROWS if name in abilities))


class HeadOutputs:
    """The part of each operation whose shapes follow from the batch alone, so that it can be recorded."""

    def __init__(self, trunk: InferenceEncoder, description: Description) -> None:
        self._trunk, self._model = trunk, trunk.model
        self._pooling, self._multi_label = description.pooling, description.multi_label

    def __call__(self, name: str, batch: Batch) -> Tensor:
        """Run the trunk and what follows it in an operation.

        Args:
            name: one of `ROWS`.
            batch: on the model's device.

        Returns:
            By operation:
            `embed`: float32 (sequences, hidden_size), of unit length;
            `classify`: float32 (sequences, labels), probabilities or a score;
            `tokens`: float32 (tokens, labels), probabilities;
            `answer`: float32 (tokens, 2), scores;
            `fill-mask`: floating (masked, hidden_size), the hidden states of `batch.masked_positions`.
        """
        layout = layout_of_batch(batch)
        hidden = self._trunk(batch.input_ids, batch.token_type_ids, layout)
        match name:
            case "embed":
                return self._embed(hidden, layout)
            case "classify":
                return self._classify(hidden, layout)
            case "tokens":
                return token_logits(self._model, hidden).float().softmax(-1)
            case "answer":
                return answer_logits(self._model, hidden).float()
            case "fill-mask":
                return hidden.index_select(0, batch.masked_positions)
        raise ValueError(f"no operation {name!r}")

    def candidates(self, masked: Tensor, count: int) -> Tensor:
        """The likeliest words for each hidden one.

        Args:
            masked: floating (masked, hidden_size), the hidden states of hidden words.
            count: of candidates.

        Returns:
            float64, which holds both exactly, (masked, 2 * candidates): ids, then probabilities.
        """
        scores = vocabulary_logits(self._model, masked).float().softmax(-1)
        best = scores.topk(min(count, scores.size(-1)))
        return torch.cat([best.indices.double(), best.values.double()], dim=1)

    def attention(self, batch: Batch, lengths: Sequence[int]) -> Tensor:
        """Attention weights: float16, each sequence's (layers, heads, length, length), flat, end to end."""
        found, start = [], 0
        for length in lengths:
            part = slice(start, start + length)
            weights = self._trunk.attention_weights(batch.input_ids[part], batch.token_type_ids[part])
            found.append(weights.to(torch.float16).flatten())
            start += length
        return torch.cat(found)

    def _embed(self, hidden: Tensor, layout: SequenceLayout) -> Tensor:
        if self._pooling == "cls":
            pooled = hidden.index_select(0, layout.first_tokens).float()
        else:
            pooled = mean_pooled(hidden.float(), layout)
        return F.normalize(pooled, dim=-1)

    def _classify(self, hidden: Tensor, layout: SequenceLayout) -> Tensor:
        logits = sequence_logits(self._model, hidden, layout).float()
        if self._multi_label:
            return logits.sigmoid()
        return logits.softmax(-1) if logits.size(1) > 1 else logits


def results(
    operation: Operation, found: np.ndarray, pack: Pack, masked: np.ndarray, description: Description
) -> list[Any]:
    """A result for each sequence, as `EncoderModel.run` gives it, from what was copied to the host.

    Args:
        operation: what was asked.
        found: what `EncoderModel.compute` gave.
        pack: the sequences.
        masked: int64, the hidden words' positions in the pack, in order.
        description: of the model.
    """
    if ROWS.get(operation.name) == "sequences":
        return list(found[: len(pack.lengths)])
    ends = np.cumsum(pack.lengths)
    match operation.name:
        case "tokens" | "answer":
            return np.split(found[: ends[-1]], ends[:-1])
        case "fill-mask":
            return _words_by_sequence(found, np.searchsorted(ends, masked, side="right"), len(ends))
        case "attention":
            shape = (description.layers, description.heads)
            sizes = pack.lengths**2 * (description.layers * description.heads)
            parts = np.split(found, np.cumsum(sizes)[:-1])
            return [part.reshape(*shape, n, n) for part, n in zip(parts, pack.lengths, strict=True)]
    raise ValueError(f"no operation {operation.name!r}")


def _words_by_sequence(
    found: np.ndarray, owners: np.ndarray, sequences: int
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    ids, probabilities = np.split(found, 2, axis=1)
    words: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(sequences)]
    for owner, row, scores in zip(
        owners.tolist(), ids.astype(np.int64), probabilities.astype(np.float32), strict=True
    ):
        words[owner].append((row, scores))
    return words
