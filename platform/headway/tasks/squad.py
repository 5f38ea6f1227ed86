"""Exact match and F1 of answers, as the evaluation script of SQuAD computes them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, no punctuation, articles or extra white space (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 if the answer is one of the right ones, else 0. Without a right answer, "" is right."""
    return float(normalized(answer) in {normalized(truth) for truth in truths or [""]})


def token_f1(answer: str, truths: Sequence[str]) -> float:
    """F1 of the answer's words against those of the right answer that fits it best."""
    return max(_f1(normalized(answer).split(), normalized(truth).split()) for truth in truths or [""])


def _f1(predicted: list[str], truth: list[str]) -> float:
    if not predicted or not truth:
        return float(predicted == truth)
    common = sum((Counter(predicted) & Counter(truth)).values())
    return 2 * common / (len(predicted) + len(truth))
