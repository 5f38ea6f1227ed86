"""What tasks have in common that learn something about each text, or each pair of texts in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.data.batches import LabelledBatches
from headway.data.sources.rows import Row, text_of
from headway.engine.model.encoder import label_settings
from headway.tasks.item import Item
from headway.tasks.rows import Rows
from headway.tasks.task import Task


class TextTask(Task):
    """A task on texts, or pairs of texts. Subclasses say what is learned about them."""

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    @classmethod
    def columns(cls, config: Any) -> list[str]:
        """See `Task`."""
        pair = [config.pair_column] if config.pair_column else []
        return [config.text_column, *pair, config.label_column]

    @classmethod
    def item(cls, config: Any, row: Row) -> Item:
        """See `Task`."""
        columns = cls.columns(config)[:-1]
        texts = tuple(text_of(row, column) for column in columns)
        target = cls.target(config, row)
        return Item(texts, target, cls.keys(texts), row.origin, cls.classes(target))

    @classmethod
    def keys(cls, texts: Sequence[str]) -> Sequence[str]:
        """What keeps rows together: a text of theirs that is the same."""
        return texts

    @classmethod
    def classes(cls, target: Any) -> Sequence[str]:
        """The classes of a row with this target; none if the task has no classes."""
        return ()

    @classmethod
    def target(cls, config: Any, row: Row) -> Any:
        """What is learned about the texts of a row."""
        raise NotImplementedError

    def label_array(self, rows: Rows) -> np.ndarray:
        """What is learned about all rows, int64 or float32, shape (rows, …)."""
        raise NotImplementedError

    def batches(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int = 0
    ) -> LabelledBatches:
        """See `Task`."""
        pairs = len(rows.tokens[0]) > 1
        return LabelledBatches(
            [texts[0] for texts in rows.tokens],
            self.label_array(rows),
            tokenizer,
            max_length=self.max_length,
            batch_size=batch_size,
            seed=seed,
            second_texts=[texts[1] for texts in rows.tokens] if pairs else None,
        )

    def model_settings(self) -> dict[str, Any]:
        """See `Task`; with these, transformers computes the same loss if it gets labels."""
        settings = label_settings(self.labels) if self.labels else {"num_labels": 1}
        return settings | {"problem_type": self.problem_type}

    @property
    def problem_type(self) -> str:
        """The name that transformers has for the kind of labels."""
        raise NotImplementedError


def label_of(row: Row, column: str) -> str:
    """The name of a row's label.

    Raises:
        ConfigError: the row has none.
    """
    value = row.values[column]
    label = "" if value is None else str(value).strip()
    if not label:
        raise ConfigError(f"{row.origin}: no label")
    return label


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Weights of labels, inverse to how often they occur, with a mean of 1 over all rows."""
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)
