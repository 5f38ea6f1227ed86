"""Regression: texts, or pairs of texts, with a number each."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, number_of
from headway.engine.training.task_objectives import RegressionObjective
from headway.tasks.item import Splits
from headway.tasks.rows import Rows
from headway.tasks.texts import TextTask


class Regression(TextTask):
    """Learns with squared error. Judged by rank correlation.

    The head learns the numbers as they are. If they are far from 1, scale them.
    """

    kind = "regression"
    primary = "spearman"
    problem_type = "regression"

    @classmethod
    def target(cls, config: Any, row: Row) -> float:
        """See `TextTask`."""
        return number_of(row, config.label_column)

    @classmethod
    def check(cls, splits: Splits) -> None:
        """Refuse numbers that are all the same."""
        for name, items in splits.items():
            if len({item.target for item in items}) < 2:
                raise ConfigError(
                    f"task: all numbers of the {name} split are {items[0].target}; they must differ"
                )

    def label_array(self, rows: Rows) -> np.ndarray:
        """The numbers, float32, shape (rows,)."""
        return np.asarray(rows.targets, dtype=np.float32)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> RegressionObjective:
        """See `Task`."""
        return RegressionObjective(model)

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Spearman's and Pearson's correlation, and the root of the mean squared error."""
        truth, predicted = self.label_array(rows), np.asarray(predictions)
        error = float(np.sqrt(np.mean((truth - predicted) ** 2)))
        return correlations(truth, predicted) | {"rmse": error}


def correlations(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation; 0 if one side is constant, which leaves them undefined."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(truth, predicted).statistic),
        "pearson": float(pearsonr(truth, predicted).statistic),
    }
