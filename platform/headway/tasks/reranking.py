"""Reranking: a cross-encoder scores how well passages answer a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, number_of
from headway.engine.training.task_objectives import RerankingObjective
from headway.tasks.item import Splits
from headway.tasks.ranking import RankingScores, ranking_scores
from headway.tasks.rows import Rows
from headway.tasks.texts import TextTask


class Reranking(TextTask):
    """Learns with binary cross-entropy on query and passage in one sequence. Judged by ranks within a query.

    To sentence-transformers, a saved model is a `CrossEncoder`.
    """

    kind = "reranking"
    primary = "mrr_at_10"
    # For transformers this only means one output; its loss for regression is another one.
    problem_type = "regression"

    @classmethod
    def target(cls, config: Any, row: Row) -> int:
        """See `TextTask`."""
        number = number_of(row, config.label_column)
        if number not in (0.0, 1.0):
            raise ConfigError(
                f"{row.origin}: column {config.label_column!r} holds {number:g}; allowed: 0 or 1"
            )
        return int(number)

    @classmethod
    def keys(cls, texts: Sequence[str]) -> Sequence[str]:
        """See `TextTask`; a passage is ranked for many queries."""
        return texts[:1]

    @classmethod
    def classes(cls, target: int) -> Sequence[str]:
        """See `TextTask`; whether the passage answers the query."""
        return [str(target)]

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: some query of each split has passages of both labels."""
        for name, items in splits.items():
            if not any(len(set(group)) == 2 for group in _by_query((i.texts[0], i.target) for i in items)):
                raise ConfigError(f"task: no query of the {name} split has passages of both labels, 0 and 1")

    def label_array(self, rows: Rows) -> np.ndarray:
        """Whether each passage answers its query, float32, shape (rows,)."""
        return np.asarray(rows.targets, dtype=np.float32)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> RerankingObjective:
        """See `Task`."""
        return RerankingObjective(model)

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Means over queries of reciprocal rank and NDCG of the first ten, and of average precision.

        Only queries with passages of both labels count, as there is nothing to rank in the others. If there
        are no such queries, as may be in a small fold, the scores are NaN.
        """
        by_query: list[RankingScores] = []
        pairs = zip(rows.texts, zip(rows.targets, predictions, strict=True), strict=True)
        for group in _by_query((texts[0], pair) for texts, pair in pairs):
            truth = np.asarray([pair[0] for pair in group])
            scores = np.asarray([float(pair[1]) for pair in group])
            if len(set(truth)) == 2:
                by_query.append(ranking_scores(truth, scores))
        means = np.asarray(by_query).mean(0) if by_query else np.full(3, np.nan)
        return dict(zip(("mrr_at_10", "ndcg_at_10", "map"), map(float, means), strict=True))


def _by_query(pairs: Any) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for query, value in pairs:
        groups.setdefault(query, []).append(value)
    return list(groups.values())
