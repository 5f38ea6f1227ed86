"""Queries with passages that answer them or do not: a cross-encoder ranks the passages."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, number_of
from headway.engine.training.task_objectives import RerankingObjective
from headway.tasks.task import Rows, Splits
from headway.tasks.texts import TextTask

_CUT = 10


class Reranking(TextTask):
    """Binary cross-entropy of query and passage in one sequence; judged by the ranks within each query.

    What it saves is a `CrossEncoder` to sentence-transformers.
    """

    kind = "reranking"
    primary = "mrr_at_10"
    # One output and no loss of transformers' own: its regression loss would be another one.
    problem_type = "regression"

    @classmethod
    def target(cls, config: Any, row: Row) -> int:
        """See `TextTask`."""
        number = number_of(row, config.label_column)
        if number not in (0.0, 1.0):
            raise ConfigError(f"{row.origin}: column {config.label_column!r} holds {number:g}, not 0 or 1")
        return int(number)

    @classmethod
    def check(cls, splits: Splits) -> None:
        """Refuse a split without a query that has both an answer and something else."""
        for name, items in splits.items():
            if not any(len(set(group)) == 2 for group in _by_query((i.texts[0], i.target) for i in items)):
                raise ConfigError(f"task: no query of the {name} split has passages of both labels, 1 and 0")

    def label_array(self, rows: Rows) -> np.ndarray:
        """Whether each passage answers its query, float32, shape (rows,)."""
        return np.asarray(rows.targets, dtype=np.float32)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> RerankingObjective:
        """See `Task`."""
        return RerankingObjective(model)

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Mean over queries of the reciprocal rank and of NDCG, of the ten first; and average precision.

        Queries without an answer, or with nothing else, say nothing and do not count.
        """
        from sklearn.metrics import average_precision_score, ndcg_score

        found: list[tuple[float, float, float]] = []
        pairs = zip(rows.texts, zip(rows.targets, predictions, strict=True), strict=True)
        for group in _by_query((texts[0], pair) for texts, pair in pairs):
            truth = np.asarray([pair[0] for pair in group])
            scores = np.asarray([float(pair[1]) for pair in group])
            if len(set(truth)) == 2:
                precision = float(average_precision_score(truth, scores))
                gain = float(ndcg_score(truth[None], scores[None], k=_CUT))
                found.append((reciprocal_rank(truth, scores), gain, precision))
        means = np.asarray(found).mean(0)
        return dict(zip(("mrr_at_10", "ndcg_at_10", "map"), map(float, means), strict=True))


def reciprocal_rank(truth: np.ndarray, scores: np.ndarray) -> float:
    """1 / rank of the first right answer among the ten best; 0 where there is none."""
    ranked = truth[np.argsort(-scores, kind="stable")][:_CUT]
    hits = np.flatnonzero(ranked)
    return 1.0 / (hits[0] + 1) if len(hits) else 0.0


def _by_query(pairs: Any) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for query, value in pairs:
        groups.setdefault(query, []).append(value)
    return list(groups.values())
