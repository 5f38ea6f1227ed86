"""Measures of a ranking in which ties count against the model, and what is not a number ranks last.

A model that gives everything the same score has not ranked anything. Breaking ties in the order of the rows
would call it perfect if the right answer is written first, and in bf16 ties are common.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CUT = 10
"""Answers of a query that count for its reciprocal rank and its NDCG."""

_ROUNDING = 1e-6
"""Cosines of vectors in float32 that differ by no more than this are the same."""


class RankingScores(NamedTuple):
    """How well the answers of one query are ranked, each from 0 to 1.

    Attributes:
        reciprocal_rank: 1 / rank of the first right answer; 0 if it is not among the first ten.
        ndcg: normalised discounted cumulative gain of the first ten (Järvelin and Kekäläinen 2002).
        average_precision: mean precision at the ranks of the right answers.
    """

    reciprocal_rank: float
    ndcg: float
    average_precision: float


def ranking_scores(truth: np.ndarray, scores: np.ndarray) -> RankingScores:
    """Measure one query's ranking.

    Args:
        truth: int64, shape (answers,): 1 for a right answer, 0 for a wrong one; there are both.
        scores: floating, shape (answers,).
    """
    from sklearn.metrics import average_precision_score, ndcg_score

    # Best first; among equal scores the wrong answers come first.
    order = np.lexsort((truth, -_comparable(scores)))
    ranked = truth[order]
    untied = np.arange(len(truth), 0, -1)
    hits = np.flatnonzero(ranked[:CUT])
    return RankingScores(
        1.0 / (hits[0] + 1) if len(hits) else 0.0,
        float(ndcg_score(ranked[None], untied[None], k=CUT)),
        float(average_precision_score(ranked, untied)),
    )


def retrieval_scores(anchors: np.ndarray, seconds: np.ndarray, texts: list[str]) -> dict[str, float]:
    """How high each anchor's own second text ranks among those of all rows.

    Args:
        anchors: float32, shape (rows, hidden_size), of length 1.
        seconds: likewise, in the same order.
        texts: the second texts; the same text is the same answer in every row.
    """
    cosines = _comparable(anchors @ seconds.T)
    own = np.diagonal(cosines)
    index = np.unique(texts, return_inverse=True)[1]
    other = index[None, :] != index[:, None]
    ranks = 1 + ((cosines >= own[:, None] - _ROUNDING) & other).sum(1)
    return {"mrr": float((1.0 / ranks).mean()), "accuracy": float((ranks == 1).mean())}


def _comparable(scores: np.ndarray) -> np.ndarray:
    """Scores below which everything that is not a number ranks."""
    return np.where(np.isnan(scores), -np.inf, scores)
