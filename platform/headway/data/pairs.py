"""Cut documents into rows, and make of each row one segment, or two for next-sentence prediction."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from headway.config.base import ConfigError
from headway.data.store import TokenStore

IS_NEXT, IS_RANDOM = 0, 1
IN_ORDER, SWAPPED = 0, 1

PairObjective = Literal["nsp", "sop"]
"""What is judged of a pair: whether B follows A or is random, or whether the two stand in order."""


class Rows(NamedTuple):
    """Runs of neighbouring sentences of one document that fill a sequence together.

    Attributes:
        first: int64, shape (rows,): the first sentence of each.
        last: int64, shape (rows,): the sentence after its last.
        document: int64, shape (rows,).
        lengths: int64, shape (rows,): tokens, before truncation.
    """

    first: np.ndarray
    last: np.ndarray
    document: np.ndarray
    lengths: np.ndarray


def plan_rows(store: TokenStore, budget: int) -> Rows:
    """Fill rows with whole sentences, in order, until each holds `budget` tokens or its document ends."""
    first: list[int] = []
    last: list[int] = []
    owner: list[int] = []
    for document in range(store.num_documents):
        sentence, end = int(store.documents[document]), int(store.documents[document + 1])
        while sentence < end:
            full = store.sentences[sentence] + budget
            stop = int(np.searchsorted(store.sentences[: end + 1], full, side="left"))
            stop = min(max(stop, sentence + 1), end)
            first.append(sentence)
            last.append(stop)
            owner.append(document)
            sentence = stop
    starts, stops = np.asarray(first, dtype=np.int64), np.asarray(last, dtype=np.int64)
    lengths = store.sentences[stops] - store.sentences[starts]
    return Rows(starts, stops, np.asarray(owner, dtype=np.int64), lengths)


def check_pairable(store: TokenStore) -> None:
    """Refuse next-sentence prediction where no other document could give a random sentence."""
    if store.num_documents < 2:
        raise ConfigError("objective: nsp needs at least two documents on each side of the split")


def sentence_pair(
    store: TokenStore,
    rows: Rows,
    row: int,
    budget: int,
    rng: np.random.Generator,
    objective: PairObjective = "nsp",
) -> tuple[np.ndarray, np.ndarray, int]:
    """Segments A and B of a row, `budget` tokens at most together, and their label.

    Next sentences, Devlin et al. 2018, appendix A.2: half of the time B is what follows A, otherwise it
    comes from another document; a row of one sentence always takes a random B. Sentence order, Lan et al.
    2019, section 3.1: half of the time the two are swapped; a row of one sentence is cut in two.
    """
    first, last = int(rows.first[row]), int(rows.last[row])
    split = first + (1 if last - first == 1 else int(rng.integers(1, last - first)))
    segment_a, segment_b = store.span(first, split), store.span(split, last)
    if objective == "sop":
        if not len(segment_b):
            segment_a, segment_b = np.array_split(segment_a, 2)
        segment_a, segment_b = _truncate_pair(segment_a, segment_b, budget, rng)
        return (segment_b, segment_a, SWAPPED) if rng.random() < 0.5 else (segment_a, segment_b, IN_ORDER)
    if last - first > 1 and rng.random() < 0.5:
        label = IS_NEXT
    else:
        wanted = max(budget - len(segment_a), budget // 4)
        label, segment_b = IS_RANDOM, _random_segment(store, int(rows.document[row]), wanted, rng)
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
    """Shorten the longer one to fit; from its front or its end, to avoid a bias."""
    half = budget // 2
    room_a = max(half, budget - len(segment_b))
    room_b = max(budget - half, budget - len(segment_a))
    return _shorten(segment_a, room_a, rng), _shorten(segment_b, room_b, rng)


def _shorten(segment: np.ndarray, room: int, rng: np.random.Generator) -> np.ndarray:
    excess = max(0, len(segment) - room)
    from_front = int(rng.integers(excess + 1))
    return segment[from_front : len(segment) - (excess - from_front)]
