"""What each operation computes from an encoder's hidden states, and how its output is split by sequence.

An operation's output is one tensor on the device, and nothing else is read back from there: all lengths and
the positions of masks are known on the host, where the batch was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headway.data.batch import Batch
from headway.engine.inference.encoder import InferenceEncoder
from headway.engine.inference.graph_sizes import ResultRows
from headway.engine.model.heads import (
    answer_logits,
    sequence_logits,
    token_logits,
    vocabulary_logits,
)
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.inference.description import Ability, Description
from headway.inference.packing import Operation, OperationName, Pack
from headway.inference.sentence_head import SentenceHead


class HeadOutputs:
    """The outputs of an encoder's heads, whose shapes follow from the batch alone: they can be recorded."""

    def __init__(self, trunk: InferenceEncoder, description: Description) -> None:
        self._trunk, self._model = trunk, trunk.model
        self._multi_label = description.multi_label
        self._score: Callable[[Tensor], Tensor] = getattr(nn, description.score_activation)()
        self._vectors = SentenceHead(description.sentence, description.hidden_size, trunk.model.device)

    def __call__(self, name: str, batch: Batch) -> Tensor:
        """Run the trunk, and the head of an operation.

        Args:
            name: one of `HEADS`.
            batch: on the model's device.

        Returns:
            What the function of that name gives.
        """
        layout = layout_of_batch(batch)
        hidden = self._trunk(batch.input_ids, batch.token_type_ids, layout)
        return HEADS[name].output(self, hidden, layout, batch)

    def embed(self, hidden: Tensor, layout: SequenceLayout, batch: Batch) -> Tensor:
        """Embeddings of unit length, float32 (sequences, embedding_size)."""
        return self._vectors(hidden, layout)

    def classify(self, hidden: Tensor, layout: SequenceLayout, batch: Batch) -> Tensor:
        """Probabilities, or the score if there is one label, float32 (sequences, labels)."""
        logits = sequence_logits(self._model, hidden, layout).float()
        if logits.size(1) == 1:
            return self._score(logits)
        return logits.sigmoid() if self._multi_label else logits.softmax(-1)

    def tokens(self, hidden: Tensor, layout: SequenceLayout, batch: Batch) -> Tensor:
        """Probabilities of labels, float32 (tokens, labels)."""
        return token_logits(self._model, hidden).float().softmax(-1)

    def answer(self, hidden: Tensor, layout: SequenceLayout, batch: Batch) -> Tensor:
        """Scores as the first and as the last token of an answer, float32 (tokens, 2)."""
        return answer_logits(self._model, hidden).float()

    def masked(self, hidden: Tensor, layout: SequenceLayout, batch: Batch) -> Tensor:
        """Hidden states of masked words, floating (masked, hidden_size); see `candidates`."""
        return hidden.index_select(0, batch.masked_positions)

    def candidates(self, masked: Tensor, count: int) -> Tensor:
        """The likeliest words for each masked one.

        Args:
            masked: hidden states of masked words, floating (masked, hidden_size).
            count: number of candidates for each.

        Returns:
            Their ids, then their probabilities, (masked, 2 * candidates); float64 holds both exactly.
        """
        scores = vocabulary_logits(self._model, masked).float().softmax(-1)
        best = scores.topk(min(count, scores.size(-1)))
        return torch.cat([best.indices.double(), best.values.double()], dim=1)

    def attention(self, batch: Batch, lengths: Sequence[int]) -> Tensor:
        """Attention weights, float16: each sequence's (layers, heads, length, length), flat, end to end."""
        parts, start = [], 0
        for length in lengths:
            part = slice(start, start + length)
            weights = self._trunk.attention_weights(batch.input_ids[part], batch.token_type_ids[part])
            parts.append(weights.to(torch.float16).flatten())
            start += length
        return torch.cat(parts)


class Head(NamedTuple):
    """A head, which an operation needs.

    Attributes:
        rows: what each row of the output stands for: a sequence, a token, or a masked word.
        output: computes it from the hidden states of a batch.
    """

    rows: ResultRows
    output: Callable[[HeadOutputs, Tensor, SequenceLayout, Batch], Tensor]


HEADS: dict[str, Head] = {
    "embed": Head("sequences", HeadOutputs.embed),
    "classify": Head("sequences", HeadOutputs.classify),
    "tokens": Head("tokens", HeadOutputs.tokens),
    "answer": Head("tokens", HeadOutputs.answer),
    "fill-mask": Head("masked", HeadOutputs.masked),
}
"""By the operation's name. `attention` needs no head: it is the trunk's."""


def operations_of(abilities: Sequence[Ability]) -> tuple[OperationName, ...]:
    """The operations in `HEADS` that a model with these abilities has."""
    names: tuple[OperationName, ...] = ("classify", "tokens", "answer", "fill-mask")
    return ("embed", *(name for name in names if name in abilities))


def results(
    operation: Operation, output: np.ndarray, pack: Pack, masked: np.ndarray, description: Description
) -> list[Any]:
    """A result for each sequence, as `EncoderModel.run` returns it, from an output on the host.

    Args:
        operation: what was computed.
        output: of `EncoderModel.compute`.
        pack: the sequences.
        masked: indices of masked words in the pack, ascending, int64 (masked,).
        description: of the model.
    """
    ends = np.cumsum(pack.lengths)
    if operation.name == "attention":
        shape = (description.layers, description.heads)
        sizes = pack.lengths**2 * (description.layers * description.heads)
        parts = np.split(output, np.cumsum(sizes)[:-1])
        return [part.reshape(*shape, n, n) for part, n in zip(parts, pack.lengths, strict=True)]
    match HEADS[operation.name].rows:
        case "sequences":
            return list(output[: len(pack.lengths)])
        case "tokens":
            return np.split(output[: ends[-1]], ends[:-1])
        case "masked":
            return _words_by_sequence(output, np.searchsorted(ends, masked, side="right"), len(ends))


def _words_by_sequence(
    output: np.ndarray, owners: np.ndarray, sequences: int
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """(ids, probabilities) of the candidates for each mask, in a list for each sequence."""
    ids, probabilities = np.split(output, 2, axis=1)
    words: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(sequences)]
    for owner, row, scores in zip(
        owners.tolist(), ids.astype(np.int64), probabilities.astype(np.float32), strict=True
    ):
        words[owner].append((row, scores))
    return words
