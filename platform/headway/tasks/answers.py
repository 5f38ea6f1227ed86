"""Answers out of token scores, and how good they are: exact match and F1, as SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BEST_PLACES = 20


class Span(NamedTuple):
    """Tokens of a sequence, first and last, with the sum of their scores."""

    first: int
    last: int
    score: float


def best_span(scores: np.ndarray, begin: int, end: int, longest: int) -> Span | None:
    """The span with the highest sum of a first token's and a last token's score.

    Args:
        scores: float32, shape (tokens, 2): of each token as first, and as last.
        begin: the first token that may be in it.
        end: one past the last such token.
        longest: tokens of a span at most.

    Returns:
        None where there is no token between `begin` and `end`.
    """
    firsts = begin + np.argsort(-scores[begin:end, 0], kind="stable")[:_BEST_PLACES]
    best: Span | None = None
    for first in firsts:
        lasts = scores[first : min(first + longest, end), 1]
        last = int(first + lasts.argmax())
        total = float(scores[first, 0] + scores[last, 1])
        if best is None or total > best.score:
            best = Span(int(first), last, total)
    return best


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles, extra white space (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, else 0; of a question without answer, "" is right."""
    return float(normalised(answer) in {normalised(truth) for truth in truths or [""]})


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """The highest F1 of the answer's words against those of a right one."""
    return max(_f1(normalised(answer).split(), normalised(truth).split()) for truth in truths or [""])


def _f1(found: list[str], truth: list[str]) -> float:
    if not found or not truth:
        return float(found == truth)
    common = sum((Counter(found) & Counter(truth)).values())
    return 2 * common / (len(found) + len(truth))
