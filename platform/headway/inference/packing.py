"""What travels to a model: sequences laid end to end, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class TokenSequence(NamedTuple):
    """One input of an encoder.

    Attributes:
        ids: int32, shape (length,): token ids, special ones included.
        types: uint8, shape (length,): which segment each token belongs to.
    """

    ids: np.ndarray
    types: np.ndarray


class Pack(NamedTuple):
    """Sequences end to end, as they travel to a replica.

    Attributes:
        ids: int32, shape (tokens,).
        types: uint8, shape (tokens,).
        lengths: int64, shape (sequences,).
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
    """What is asked of a pack.

    Attributes:
        name: `embed`, `classify`, `fill-mask`, `tokens`, `answer` or `attention`.
        detail: of `fill-mask`, how many candidates of each hidden word.
    """

    name: str
    detail: int = 0


def packed(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of sequences of like length, together at most so many tokens."""
    waiting: list[int] = []
    tokens = 0
    for place in np.argsort(lengths, kind="stable").tolist():
        if waiting and tokens + lengths[place] > most:
            yield waiting
            waiting, tokens = [], 0
        waiting.append(place)
        tokens += lengths[place]
    yield waiting
