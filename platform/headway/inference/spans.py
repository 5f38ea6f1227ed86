"""Stretches of text out of a model's scores of tokens: entities, and answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.inference.tokens import Piece

LONGEST_ANSWER = 30
_OUTSIDE = "O"


class Entity(NamedTuple):
    """`text[start:end]` is a `label`, with the mean probability of its words."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Span(NamedTuple):
    """`text[start:end]` answers the question, with this probability."""

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
    """Words of one label next to each other, as one entity each; a label `B-…` begins a new one.

    Args:
        text: what was read.
        windows: the text's pieces with the probabilities of their tokens, (length, labels).
        labels: with or without the prefixes `B-` and `I-` (Ramshaw and Marcus 1995); `O` is none.
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
    """Each word with the label of its first token, as read by the window that sees most around it."""
    best: dict[int, tuple[int, _Word]] = {}
    for piece, probabilities in windows:
        encoding, length = piece.encoding, len(piece.encoding.ids)
        ends: dict[int, int] = {}
        for word_id, (_, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word_id is not None:
                ends[word_id] = end
        seen: set[int] = set()
        for place, word_id in enumerate(encoding.word_ids):
            if word_id is None or word_id in seen:
                continue
            seen.add(word_id)
            start = encoding.offsets[place][0]
            label = int(probabilities[place].argmax())
            around = min(place, length - 1 - place)
            if start not in best or around > best[start][0]:
                word = _Word(start, ends[word_id], labels[label], float(probabilities[place, label]))
                best[start] = (around, word)
    return [best[start][1] for start in sorted(best)]


def answer_spans(context: str, windows: Sequence[tuple[Piece, np.ndarray]], candidates: int) -> list[Span]:
    """The best answers over all windows, no two overlapping, best first.

    A span's score is the product of the probabilities of its first and last token among the context's
    (Devlin et al. 2018, section 4.2).

    Args:
        context: the text.
        windows: (question, window of the text) pieces with the scores of their tokens, (length, 2).
        candidates: answers at most.
    """
    spans = [
        span for piece, scores in windows for span in _best_of_window(context, piece, scores, candidates)
    ]
    chosen: list[Span] = []
    for span in sorted(spans, key=lambda s: -s.score):
        if all(span.end <= other.start or span.start >= other.end for other in chosen):
            chosen.append(span)
    return chosen[:candidates]


def _best_of_window(context: str, piece: Piece, scores: np.ndarray, candidates: int) -> list[Span]:
    inside = np.asarray([part == 1 for part in piece.encoding.sequence_ids])
    if not inside.any():
        return []
    first, last = (_softmax(np.where(inside, scores[:, side], -np.inf)) for side in (0, 1))
    joint = np.triu(np.outer(first, last))
    joint -= np.triu(joint, LONGEST_ANSWER)
    order = np.argsort(joint, axis=None)[::-1][: candidates * 4]
    spans = []
    for start, end in zip(*np.unravel_index(order, joint.shape), strict=True):
        if joint[start, end] > 0.0:
            begin, stop = piece.encoding.offsets[start][0], piece.encoding.offsets[end][1]
            spans.append(Span(context[begin:stop], begin, stop, float(joint[start, end])))
    return spans


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()
