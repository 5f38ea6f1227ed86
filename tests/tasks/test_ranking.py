"""Measures of a ranking: ties count against the model, and what is not a number ranks last."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from headway.tasks.ranking import ranking_scores, retrieval_scores


def worst_order(truth, scores, measure):
    """The lowest value of a measure over all orders of the answers that the scores allow."""
    values = []
    for order in itertools.permutations(range(len(truth))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            values.append(measure(truth[list(order)], np.arange(len(truth), 0, -1)))
    return min(values)


def first_hit(ranked, _):
    hits = np.flatnonzero(ranked[:10])
    return 1 / (hits[0] + 1) if len(hits) else 0.0


def ndcg(ranked, scores):
    return ndcg_score(ranked[None], scores[None], k=10)


@pytest.mark.parametrize("seed", range(12))
def test_a_query_is_scored_by_the_worst_order_that_its_scores_allow(seed):
    rng = np.random.default_rng(seed)
    truth = rng.permutation([1, 1, 0, 0, 0, 0])
    scores = rng.integers(0, 3, 6).astype(np.float32)
    found = ranking_scores(truth, scores)
    assert found.reciprocal_rank == pytest.approx(worst_order(truth, scores, first_hit))
    assert found.ndcg == pytest.approx(worst_order(truth, scores, ndcg))
    assert found.average_precision == pytest.approx(worst_order(truth, scores, average_precision_score))


@pytest.mark.parametrize("value", [0.25, np.nan])
def test_a_reranker_that_says_the_same_of_everything_finds_nothing(value):
    truth = np.asarray([1] + [0] * 12)
    found = ranking_scores(truth, np.full(13, value, np.float32))
    assert found.reciprocal_rank == 0.0
    assert found.ndcg == 0.0
    assert found.average_precision == pytest.approx(1 / 13)


def test_an_answer_without_a_number_ranks_behind_all_others():
    truth = np.asarray([1, 0, 0])
    assert ranking_scores(truth, np.asarray([np.nan, -5.0, 3.0])).reciprocal_rank == pytest.approx(1 / 3)
    assert ranking_scores(truth, np.asarray([-5.0, np.nan, np.nan])).reciprocal_rank == 1.0


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_vectors_that_are_all_the_same_find_nothing(value):
    rng = np.random.default_rng(0)
    vector = rng.normal(size=384).astype(np.float32) * value
    vectors = np.tile(vector / np.linalg.norm(vector), (57, 1))
    found = retrieval_scores(vectors, vectors, [f"text {i}" for i in range(57)])
    assert found == {"mrr": pytest.approx(1 / 57), "accuracy": 0.0}


def test_the_same_text_in_another_row_is_no_rival():
    anchors = np.eye(3, dtype=np.float32)
    seconds = anchors[[0, 0, 2]]
    found = retrieval_scores(anchors, seconds, ["a", "a", "c"])
    # The second anchor is as far from its own text as from the third.
    assert found == {"mrr": pytest.approx((1 + 1 / 2 + 1) / 3), "accuracy": pytest.approx(2 / 3)}


def test_distinct_vectors_are_ranked_by_their_cosines():
    rng = np.random.default_rng(1)
    anchors, seconds = (rng.normal(size=(40, 16)).astype(np.float32) for _ in range(2))
    anchors, seconds = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (anchors, seconds))
    ranks = [
        1 + sum(float(anchors[i] @ seconds[j]) > float(anchors[i] @ seconds[i]) for j in range(40))
        for i in range(40)
    ]
    found = retrieval_scores(anchors, seconds, [str(i) for i in range(40)])
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


@pytest.mark.parametrize("rank", range(1, 14))
def test_of_a_ranking_the_first_ten_count(rank):
    """Mean average precision sees all of it."""
    truth = np.zeros(14, int)
    truth[rank - 1] = 1
    found = ranking_scores(truth, -np.arange(14.0))
    assert found.reciprocal_rank == (pytest.approx(1 / rank) if rank <= 10 else 0.0)
    assert found.ndcg == (pytest.approx(1 / np.log2(rank + 1)) if rank <= 10 else 0.0)
    assert found.average_precision == pytest.approx(1 / rank)
