"""Classification: texts, or pairs of texts, with one label each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row
from headway.engine.training.objectives import ClassificationObjective
from headway.tasks.item import Splits
from headway.tasks.rows import Rows
from headway.tasks.texts import TextTask, balanced_weights, label_of


class Classification(TextTask):
    """Cross-entropy over classes; judged by accuracy and macro-F1."""

    kind = "classification"
    primary = "accuracy"
    problem_type = "single_label_classification"

    @classmethod
    def target(cls, config: Any, row: Row) -> str:
        """See `TextTask`."""
        return label_of(row, config.label_column)

    @classmethod
    def classes(cls, target: str) -> Sequence[str]:
        """See `TextTask`."""
        return [target]

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: at least two classes, each with two rows and in the training split."""
        counts = Counter(str(item.target) for items in splits.values() for item in items)
        trained = {str(item.target) for item in splits["train"]}
        if len(trained) < 2:
            raise ConfigError(f"task: the training split has {len(trained)} class(es); at least 2 are needed")
        for name, items in splits.items():
            unseen = sorted({str(item.target) for item in items} - trained)
            if unseen:
                raise ConfigError(
                    f"task: class {unseen[0]!r} of the {name} split has no row in the training split"
                )
        for label, count in sorted(counts.items()):
            if count == 1:
                raise ConfigError(f"task: class {label!r} has only one row; at least 2 are needed")

    @classmethod
    def label_names(cls, splits: Splits) -> list[str]:
        """See `Task`."""
        return sorted({str(item.target) for item in splits["train"]})

    def label_array(self, rows: Rows) -> np.ndarray:
        """Indices of the labels, int64, shape (rows,)."""
        index = {label: i for i, label in enumerate(self.labels)}
        return np.asarray([index[str(target)] for target in rows.targets], dtype=np.int64)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> ClassificationObjective:
        """See `Task`."""
        weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(self.label_array(rows), minlength=len(self.labels))
            weights = torch.from_numpy(balanced_weights(counts))
        return ClassificationObjective(model, class_weights=weights, label_smoothing=config.label_smoothing)

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Accuracy and macro-F1."""
        predicted = np.stack(predictions).argmax(-1)
        scores = classification_scores(self.label_array(rows), predicted, len(self.labels))
        return {name: scores[name] for name in ("accuracy", "macro_f1")}


def classification_scores(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, Any]:
    """Accuracy, macro-F1, and the confusion matrix (rows: true class; columns: predicted)."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    classes = list(range(num_labels))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def tfidf_baseline(task: Classification, train: Rows, test: Rows) -> dict[str, Any]:
    """Scores of logistic regression on TF-IDF of words and word pairs, which an encoder should beat."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    baseline.fit([" ".join(texts) for texts in train.texts], task.label_array(train))
    predicted = baseline.predict([" ".join(texts) for texts in test.texts])
    return classification_scores(task.label_array(test), predicted, len(task.labels))
