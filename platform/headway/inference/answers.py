"""Extractive question answering: from token scores to the best spans of a context.

Evaluation and the server decode with this module, so a score measured in one holds in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding

_CONFIG_KEY = "task_specific_params"
_TASK = "question-answering"


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are decoded. They travel in a model's `config.json`, so that serving follows the task.

    Attributes:
        max_answer_length: tokens in an answer at most.
        may_be_empty: "" is a possible answer, as in SQuAD 2.0; its scores are those of the first token.
    """

    max_answer_length: int = 30
    may_be_empty: bool = False

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> AnswerSettings:
        """Read the settings from the content of a `config.json`; the defaults if it holds none."""
        stored = (config.get(_CONFIG_KEY) or {}).get(_TASK) or {}
        return cls(
            int(stored.get("max_answer_len", cls.max_answer_length)),
            bool(stored.get("handle_impossible_answer", cls.may_be_empty)),
        )

    def for_config(self) -> dict[str, Any]:
        """What to add to a `config.json`, by the names that transformers' pipeline has for the settings."""
        stored = {
            "max_answer_len": self.max_answer_length,
            "handle_impossible_answer": self.may_be_empty,
        }
        return {_CONFIG_KEY: {_TASK: stored}}


class ScoredWindow(NamedTuple):
    """A question with one window of its context, as the model has scored it.

    `[CLS] Who ? [SEP] Ahab hunts [SEP]` with the context "Ahab hunts" has 7 rows of scores, starts at token
    4, and has the offsets (0, 4) and (5, 10).

    Attributes:
        scores: float, shape (tokens, 2), of each token as the first and as the last of an answer.
        start: index of the context's first token.
        offsets: int, shape (context tokens, 2), where each begins and ends in the context, in characters.
    """

    scores: np.ndarray
    start: int
    offsets: np.ndarray


def scored_window(encoding: Encoding, scores: np.ndarray) -> ScoredWindow:
    """A question with a window of its context, as the tokenizer encoded it, with the scores of its tokens."""
    context = [index for index, part in enumerate(encoding.sequence_ids) if part == 1]
    # One slice: each reading of `offsets` makes a list of all of them.
    offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)[context]
    return ScoredWindow(scores, context[0] if context else 0, offsets)


class AnswerSpan(NamedTuple):
    """`text`, which is `context[start:end]`, answers the question with this probability.

    The empty text, from 0 to 0, means that the context has no answer.
    """

    text: str
    start: int
    end: int
    score: float


def best_answers(
    context: str, windows: Sequence[ScoredWindow], settings: AnswerSettings, candidates: int = 1
) -> list[AnswerSpan]:
    """The best answers in all windows of a context, no two overlapping, best first.

    Spans are ranked by the sum of their first and last token's scores (Devlin et al. 2018, section 4.2). A
    span's probability is a softmax over the tokens of all windows together, for its first and for its last
    token (Clark and Gardner 2018, section 3.2, "shared normalization").

    Args:
        context: the whole text.
        windows: its windows, all with the same question.
        settings: of the task.
        candidates: answers at most.

    Returns:
        Fewer than `candidates` if there are no more; none if no window holds a token of the context.
    """
    if not windows:
        return []
    starts, ends, totals = (
        np.concatenate(part)
        for part in zip(*(_spans(window, settings.max_answer_length) for window in windows), strict=True)
    )
    log_total = _log_normalizer(windows, settings.may_be_empty)
    answers: list[AnswerSpan] = []
    empty = _empty_score(windows) if settings.may_be_empty else -np.inf
    while len(answers) < candidates:
        best = int(totals.argmax()) if len(totals) else -1
        total = totals[best] if len(totals) else -np.inf
        if empty > -np.inf and empty >= total:
            answers.append(AnswerSpan("", 0, 0, float(np.exp(empty - log_total))))
            empty = -np.inf
            continue
        if total == -np.inf:
            break
        start, end = int(starts[best]), int(ends[best])
        answers.append(AnswerSpan(context[start:end], start, end, float(np.exp(total - log_total))))
        totals[(starts < end) & (ends > start)] = -np.inf
    return answers


def _spans(window: ScoredWindow, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin, end (characters) and score of each span of a window, of at most `max_length` tokens."""
    tokens = len(window.offsets)
    scores = window.scores[window.start : window.start + tokens].astype(np.float64)
    first = np.arange(tokens)[:, None]
    last = first + np.arange(min(max_length, tokens))[None, :]  # (tokens, span lengths)
    first = np.broadcast_to(first, last.shape)[last < tokens]
    last = last[last < tokens]
    starts, ends = window.offsets[first, 0], window.offsets[last, 1]
    visible = ends > starts
    return starts[visible], ends[visible], (scores[first, 0] + scores[last, 1])[visible]


def _empty_score(windows: Sequence[ScoredWindow]) -> float:
    """The score of no answer: that of the window that is least sure of it."""
    return min(map(_first_token_score, windows))


def _first_token_score(window: ScoredWindow) -> float:
    return float(window.scores[0].sum())


def _log_normalizer(windows: Sequence[ScoredWindow], may_be_empty: bool) -> float:
    """Logarithm of what turns the exponential of a span's score into its probability."""
    candidates = [
        window.scores[window.start : window.start + len(window.offsets)].astype(np.float64)
        for window in windows
    ]
    if may_be_empty:
        candidates.append(min(windows, key=_first_token_score).scores[:1])
    scores = np.concatenate(candidates)  # (tokens of all windows, 2)
    return float(np.logaddexp.reduce(scores, axis=0).sum())
