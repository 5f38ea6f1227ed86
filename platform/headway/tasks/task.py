"""The base class of all tasks: prepared rows, batches and a loss to learn with, scores to judge by.

Each kind of task is a subclass of `Task`, in a file named after the kind. Its class methods turn the rows of
a source into `Item`s; its other methods work on the folder that `prepare_task` writes for them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.tasks import TaskConfig
from headway.data.batches import DealtBatches
from headway.data.corpus.tokenizer import load_tokenizer, tokenize, vocabulary_digest
from headway.data.sources.rows import Row
from headway.engine.model.encoder import dropout_settings, load_model, save_model
from headway.engine.training.objectives import TaskObjective
from headway.tasks.item import Item, Splits
from headway.tasks.rows import Rows, read_split


class Task:
    """A prepared task: a folder with one folder for each split, and `task.json`.

    Attributes:
        kind: its name in the settings.
        primary: the score, among `scores`, by which models are compared.
        auto_class: of transformers, for models with the head that this task needs.
    """

    kind: ClassVar[str]
    auto_class: ClassVar[Any]

    primary: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def columns(cls, config: Any) -> list[str]:
        """The columns that a row needs."""
        raise NotImplementedError

    @classmethod
    def item(cls, config: Any, row: Row) -> Item:
        """The texts and the target of a row.

        Raises:
            ConfigError: one line with the row, the column and what is wrong with it.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, splits: Splits) -> None:
        """Check that something can be learned from these splits.

        Raises:
            ConfigError: one line that says what is missing.
        """

    @classmethod
    def label_names(cls, splits: Splits) -> list[str]:
        """Names of the head's outputs, in their order; empty if they have no names."""
        return []

    @classmethod
    def store(cls, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What is stored of each row besides its texts, by name: a list with an array for each text."""
        unknown = np.asarray([tokenizer.unk_token_id or 0], dtype=np.int32)
        flat = iter(tokenize(tokenizer, [text for item in items for text in item.texts]))
        rows = [[next(flat) for _ in item.texts] for item in items]
        return {"tokens": [[ids if len(ids) else unknown for ids in row] for row in rows]}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `task.json`: kind, labels, counts and settings."""
        return json.loads((self.folder / "task.json").read_text())

    @property
    def labels(self) -> list[str]:
        """Names of the head's outputs, in their order."""
        return self.facts["labels"]

    @property
    def settings(self) -> dict[str, Any]:
        """The task's settings, as they were prepared."""
        return self.facts["settings"]

    @property
    def max_length(self) -> int:
        """Tokens of a sequence at most, special ones included."""
        return int(self.facts["max_length"])

    def split(self, name: str) -> Rows:
        """The rows of `train`, `validation` or `test`."""
        return read_split(self.folder / name)

    def tokenizer_of(self, model_folder: Path) -> PreTrainedTokenizerBase:
        """The tokenizer of a model, whose ids must be those that the rows were prepared with.

        Raises:
            ConfigError: they stand for other tokens.
        """
        tokenizer = load_tokenizer(model_folder)
        if vocabulary_digest(tokenizer) != self.facts["vocabulary"]:
            raise ConfigError(
                f"task: {str(self.folder)!r} was prepared with another vocabulary than that of the model "
                f"{str(model_folder)!r}; give the task's source instead"
            )
        return tokenizer

    def trained_on(self, rows: Rows) -> Rows:
        """The training rows that the loss learns from, if not all."""
        return rows

    def batches(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int = 0
    ) -> DealtBatches:
        """Batches of some rows, for the training loop."""
        raise NotImplementedError

    def row_keys(self, rows: Rows, batches: Any) -> list[str]:
        """What names each row of `batches`, which are made of `rows`, among all rows of the task."""
        return ["\n".join(texts) for texts in rows.texts]

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> TaskObjective:
        """The loss, around a model with this task's head that will be trained on `rows`."""
        raise NotImplementedError

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Scores of a model.

        Args:
            rows: that were predicted.
            predictions: the model's outputs for each row of `batches`.
            batches: made of `rows`.
        """
        raise NotImplementedError

    def load(self, folder: Path, config: FinetuneConfig) -> Any:
        """Load the model in a folder, with this task's head."""
        return load_model(
            folder,
            self.auto_class,
            random_weights=config.random_weights,
            seed=config.seed,
            **dropout_settings(folder, config.dropout, config.attention_dropout),
            **self.model_settings(),
        )

    def model_settings(self) -> dict[str, Any]:
        """Settings of the head in the model's configuration."""
        return {}

    def save(self, model: Any, tokenizer_folder: Path, folder: Path) -> None:
        """Write the model and its tokenizer in transformers' format.

        The tokenizer says how long the texts were that the model was trained on: it is served at that length.
        """
        save_model(model, folder)
        tokenizer = load_tokenizer(tokenizer_folder)
        tokenizer.model_max_length = self.max_length
        tokenizer.save_pretrained(folder)


def task_class(kind: str) -> type[Task]:
    """The class of a kind of task, from the file named after it."""
    module = importlib.import_module(f"headway.tasks.{kind.replace('-', '_')}")
    kind_class: type[Task] = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and vars(value).get("kind") == kind
    )
    return kind_class


def open_task(folder: Path) -> Task:
    """Open a task that was prepared earlier.

    Raises:
        ConfigError: the folder holds no task.
    """
    if not (folder / "task.json").is_file():
        raise ConfigError(f"task: {str(folder)!r} is not a prepared task (no task.json)")
    kind = json.loads((folder / "task.json").read_text())["kind"]
    return task_class(kind)(folder)


def settings_of(config: TaskConfig) -> dict[str, Any]:
    """The settings of a task that say what is learned, without those that say where rows come from."""
    sources = set(TaskConfig.model_fields) | {"kind", "labels_per_class"}
    return config.model_dump(mode="json", exclude=sources)
