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
    """Each word with its first token's label, taken from the window with the most context around it.

    A window may begin or end inside a word. One that begins there does not see the word's first token, so
    its label is not asked for; where the word ends, all windows say together.
    """
    spans = _word_spans(windows)
    best: dict[int, tuple[int, _Word]] = {}
    for piece, probabilities in windows:
        word_ids, offsets = piece.encoding.word_ids, piece.encoding.offsets  # each makes a list when read
        seen: set[int] = set()
        for index, word_id in enumerate(word_ids):
            if word_id is None or word_id in seen:
                continue
            seen.add(word_id)
            start, end = spans[word_id]
            if offsets[index][0] != start:
                continue
            label = int(probabilities[index].argmax())
            margin = min(index, len(word_ids) - 1 - index)
            if word_id not in best or margin > best[word_id][0]:
                word = _Word(start, end, labels[label], float(probabilities[index, label]))
                best[word_id] = (margin, word)
    return sorted(word for _, word in best.values())


def _word_spans(windows: Sequence[tuple[Piece, np.ndarray]]) -> dict[int, tuple[int, int]]:
    """Where each word of a text begins and ends, by its number, which is the same in all windows."""
    spans: dict[int, tuple[int, int]] = {}
    for piece, _ in windows:
        for word_id, (start, end) in zip(piece.encoding.word_ids, piece.encoding.offsets, strict=True):
            if word_id is not None:
                known = spans.get(word_id, (start, end))
                spans[word_id] = (min(start, known[0]), max(end, known[1]))
    return spans
