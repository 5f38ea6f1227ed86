"""Named entities: from the label probabilities of tokens to labelled spans of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.inference.tokens import Piece

_OUTSIDE = "O"


class Entity(NamedTuple):
    """`text`, from `start` to `end`, is a `label`; `score` is the mean probability of its words."""

    label: str
    text: str
    start: int
    end: int
    score: float


class _Word(NamedTuple):
    start: int
    end: int
    label: str
    score: float


def entities(text: str, windows: Sequence[tuple[Piece, np.ndarray]], labels: Sequence[str]) -> list[Entity]:
    """Join neighbouring words of one label to entities; a label `B-…` begins a new one.

    Args:
        text: the whole text.
        windows: its pieces, each with the probabilities of its tokens, float32 (length, labels).
        labels: with or without the prefixes `B-` and `I-` (Ramshaw and Marcus 1995); `O` marks none.
    """
    runs: list[list[_Word]] = []
    previous = _OUTSIDE
    for word in _words(windows, labels):
        prefix, name = _split_label(word.label)
        if word.label == _OUTSIDE:
            previous = _OUTSIDE
            continue
        if prefix == "B" or name != previous:
            runs.append([])
        runs[-1].append(word)
        previous = name
    return [
        Entity(
            _split_label(run[0].label)[1],
            text[run[0].start : run[-1].end],
            run[0].start,
            run[-1].end,
            float(np.mean([word.score for word in run])),
        )
        for run in runs
    ]


def _split_label(label: str) -> tuple[str, str]:
    prefix, separator, name = label.partition("-")
    return (prefix, name) if separator and prefix in ("B", "I") else ("", label)


def _words(windows: Sequence[tuple[Piece, np.ndarray]], labels: Sequence[str]) -> list[_Word]:
    """Each word with its first token's label, taken from the window with the most context around it."""
    best: dict[int, tuple[int, _Word]] = {}
    for piece, probabilities in windows:
        encoding, length = piece.encoding, len(piece.encoding.ids)
        ends: dict[int, int] = {}
        for word_id, (_, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word_id is not None:
                ends[word_id] = end
        seen: set[int] = set()
        for index, word_id in enumerate(encoding.word_ids):
            if word_id is None or word_id in seen:
                continue
            seen.add(word_id)
            start = encoding.offsets[index][0]
            label = int(probabilities[index].argmax())
            margin = min(index, length - 1 - index)
            if start not in best or margin > best[start][0]:
                word = _Word(start, ends[word_id], labels[label], float(probabilities[index, label]))
                best[start] = (margin, word)
    return [best[start][1] for start in sorted(best)]
