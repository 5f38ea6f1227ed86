"""Packs, which a model computes: sequences laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

OperationName = Literal["embed", "classify", "tokens", "answer", "fill-mask", "attention"]


class TokenSequence(NamedTuple):
    """One input of an encoder.

    Attributes:
        ids: token ids, special ones included, int32, shape (length,).
        types: the segment that each token belongs to, uint8, shape (length,).
    """

    ids: np.ndarray
    types: np.ndarray


class Pack(NamedTuple):
    """Sequences end to end.

    `[CLS] Quiet [SEP]` and `[CLS] Who [SEP]` have the lengths (3, 3) and 6 ids.

    Attributes:
        ids: token ids of all sequences, int32, shape (tokens,).
        types: segments of all tokens, uint8, shape (tokens,).
        lengths: of the sequences, int64, shape (sequences,).
    """

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> Pack:
        """Lay sequences end to end."""
        return cls(
            np.concatenate([sequence.ids for sequence in sequences]),
            np.concatenate([sequence.types for sequence in sequences]),
            np.asarray([len(sequence.ids) for sequence in sequences], np.int64),
        )


class Operation(NamedTuple):
    """What to compute from a pack.

    Attributes:
        name: of the computation; `inference/operations.py` says what each gives.
        candidates: for `fill-mask`, the number of words for each mask.
    """

    name: OperationName
    candidates: int = 0


def packed(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, with at most `max_tokens` tokens together."""
    pack: list[int] = []
    tokens = 0
    for index in np.argsort(lengths, kind="stable").tolist():
        if pack and tokens + lengths[index] > max_tokens:
            yield pack
            pack, tokens = [], 0
        pack.append(index)
        tokens += lengths[index]
    yield pack
