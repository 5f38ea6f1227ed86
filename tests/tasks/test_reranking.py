"""Rerankers are judged within each query, and queries with nothing to rank do not count."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from headway.tasks.reranking import Reranking
from headway.tasks.rows import Rows


def rows_of(queries: list[str], labels: list[int]) -> Rows:
    texts = [[query, f"passage {i}"] for i, query in enumerate(queries)]
    return Rows(texts, labels, {}, list(range(len(texts))), [[str(label)] for label in labels])


def test_scores_are_means_over_queries_of_scikit_learns(tmp_path):
    """Ten queries of 15 passages, whose rows are mixed and whose scores are on scales of their own."""
    rng = np.random.default_rng(0)
    queries = rng.permutation(np.repeat(np.arange(10), 15))
    labels = (rng.random(150) < 0.15).astype(int)
    labels[queries == 7] = 0
    scores = rng.normal(size=150) + 10 * queries
    expected = []
    for query in range(10):
        mine = queries == query
        truth, given = labels[mine], scores[mine]
        if len(set(truth)) < 2:
            continue
        hits = np.flatnonzero(truth[np.argsort(-given)][:10])
        expected.append(
            (
                1 / (hits[0] + 1) if len(hits) else 0.0,
                ndcg_score(truth[None], given[None], k=10),
                average_precision_score(truth, given),
            )
        )
    rows = rows_of([f"query {query}" for query in queries], labels.tolist())
    found = Reranking(tmp_path).scores(rows, list(scores), None)
    assert len(expected) == 9, "in one query there is nothing to rank"
    assert list(found) == ["mrr_at_10", "ndcg_at_10", "map"]
    assert list(found.values()) == pytest.approx(np.mean(expected, axis=0).tolist())


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_a_query_whose_passages_have_one_label_does_not_count(labels, tmp_path):
    scores = [np.asarray(score) for score in (0.5, 0.2, 0.9, 0.1, 0.2, 0.3)]
    rows = rows_of(["a"] * 3 + ["b"] * 3, [0, 0, 1, *labels])
    assert Reranking(tmp_path).scores(rows, scores, None) == {"mrr_at_10": 1.0, "ndcg_at_10": 1.0, "map": 1.0}
