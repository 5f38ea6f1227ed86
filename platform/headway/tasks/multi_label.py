"""Multi-label classification: texts, or pairs of texts, with any number of labels each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, list_of
from headway.engine.training.task_objectives import MultiLabelObjective
from headway.inference.description import threshold_for_config
from headway.tasks.item import Splits
from headway.tasks.rows import Rows
from headway.tasks.texts import TextTask


class MultiLabel(TextTask):
    """Binary cross-entropy for each label; judged by micro-F1."""

    kind = "multi-label"
    primary = "micro_f1"
    problem_type = "multi_label_classification"

    @classmethod
    def target(cls, config: Any, row: Row) -> list[str]:
        """See `TextTask`."""
        return sorted(set(list_of(row, config.label_column, config.separator)))

    @classmethod
    def classes(cls, target: list[str]) -> Sequence[str]:
        """See `TextTask`."""
        return target

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: some label in the training split, and no other label elsewhere."""
        trained = {label for item in splits["train"] for label in item.target}
        if not trained:
            raise ConfigError("task: no training row has a label")
        for name, items in splits.items():
            unseen = sorted({label for item in items for label in item.target} - trained)
            if unseen:
                raise ConfigError(
                    f"task: label {unseen[0]!r} of the {name} split has no row in the training split"
                )

    @classmethod
    def label_names(cls, splits: Splits) -> list[str]:
        """See `Task`."""
        return sorted({label for item in splits["train"] for label in item.target})

    def label_array(self, rows: Rows) -> np.ndarray:
        """Which labels each row has, float32, shape (rows, labels)."""
        index = {label: i for i, label in enumerate(self.labels)}
        result = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for row, target in enumerate(rows.targets):
            result[row, [index[label] for label in target]] = 1.0
        return result

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> MultiLabelObjective:
        """See `Task`; a balanced weight is the number of rows without a label over that with it.

        A label that all rows have, or none, has nothing to be balanced with: its weight is 1.
        """
        weights = None
        if config.class_weights == "balanced":
            counts = self.label_array(rows).sum(0)
            missing = len(rows) - counts
            both = (counts > 0) & (missing > 0)
            weights = torch.from_numpy(np.where(both, missing / np.maximum(counts, 1.0), 1.0)).float()
        return MultiLabelObjective(model, positive_weights=weights)

    def save(self, model: Any, tokenizer_folder: Path, folder: Path) -> None:
        """See `Task`; the threshold goes with the model, for whoever predicts with it."""
        for name, value in threshold_for_config(self.threshold).items():
            setattr(model.config, name, value)
        super().save(model, tokenizer_folder, folder)

    @property
    def threshold(self) -> float:
        """The lowest probability at which a label is predicted."""
        return float(self.settings.get("threshold", 0.5))

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Micro- and macro-F1, the fraction of rows with all labels right, and mean average precision.

        The precision is over the labels that some row has; if no row has any, it is NaN.
        """
        from sklearn.metrics import accuracy_score, average_precision_score, f1_score

        truth, scores = self.label_array(rows), expit(np.stack(predictions))
        predicted = scores >= self.threshold
        scores = np.where(np.isnan(scores), -1.0, scores)  # what is not a number ranks last
        known = truth.any(0)
        precision = average_precision_score(truth[:, known], scores[:, known]) if known.any() else np.nan
        return {
            "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0)),
            "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "subset_accuracy": float(accuracy_score(truth, predicted)),
            "mean_average_precision": float(precision),
        }
