"""The base class of all tasks: prepared rows, batches and a loss to learn with, scores to judge by.

Each kind of task is a subclass of `Task`, in a file named after the kind. Its class methods turn the rows of
a source into `Item`s; its other methods work on the folder that `prepare_task` writes for them.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.tasks import TaskConfig
from headway.data.batches import DealtBatches
from headway.data.corpus.store import TokenStore, open_store
from headway.data.corpus.tokenizer import load_tokenizer, tokenize, vocabulary_digest
from headway.data.sampling import random_generator
from headway.data.sources.rows import Row
from headway.engine.model.encoder import dropout_settings, load_model, save_model
from headway.engine.training.objectives import TaskObjective
from headway.tasks.item import Item, Splits
from headway.tasks.splitting import deal_groups


@dataclass(frozen=True)
class Rows:
    """The rows of a split, or some of them.

    Attributes:
        texts: of each row, as they were read.
        targets: of each row.
        stores: what is stored for each token, by name: a list for each row, with an array for each text.
            `tokens` holds token ids, int32, without special tokens.
        groups: the number of each row's group, which stays together; see `groups_of`.
        classes: the names of each row's classes.
    """

    texts: list[list[str]]
    targets: list[Any]
    stores: dict[str, list[list[np.ndarray]]]
    groups: list[int]
    classes: list[list[str]]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def tokens(self) -> list[list[np.ndarray]]:
        """The token ids of each row's texts."""
        return self.stores["tokens"]

    @property
    def class_counts(self) -> dict[str, int]:
        """How many rows there are of each class, in the order of their names."""
        return dict(sorted(Counter(name for classes in self.classes for name in classes).items()))

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows with these indices."""
        chosen = list(indices)
        return Rows(
            [self.texts[i] for i in chosen],
            [self.targets[i] for i in chosen],
            {name: [rows[i] for i in chosen] for name, rows in self.stores.items()},
            [self.groups[i] for i in chosen],
            [self.classes[i] for i in chosen],
        )

    def few(self, per_class: int, seed: int) -> Rows:
        """So many rows of each class, chosen at random; all rows of a class that has fewer.

        A row with several classes, such as a sentence with several kinds of entities, counts for each of
        them, so frequent classes may have more rows. Without classes, so many rows in all.
        """
        order = random_generator(seed, per_class).permutation(len(self)).tolist()
        found: Counter[str] = Counter()
        chosen = []
        for row in order:
            classes = self.classes[row] if any(self.classes) else [""]
            if any(found[name] < per_class for name in classes):
                chosen.append(row)
                found.update(classes)
        return self.take(sorted(chosen))

    def fold(self, number: int, folds: int, seed: int) -> tuple[Rows, Rows]:
        """Split the rows into `folds` parts with about as many rows of each class, or else of each target.

        Groups stay together.

        Returns:
            The rows of all parts but this one, and those of this one.

        Raises:
            ConfigError: there are fewer groups than parts.
        """
        strata = [str(classes or target) for classes, target in zip(self.classes, self.targets, strict=True)]
        parts = deal_groups(self.groups, strata, folds, seed)
        kept, held_out = np.flatnonzero(parts != number), np.flatnonzero(parts == number)
        return self.take(kept.tolist()), self.take(held_out.tolist())

    def joined(self, other: Rows) -> Rows:
        """These rows, then those of another split of the same task."""
        return Rows(
            self.texts + other.texts,
            self.targets + other.targets,
            {name: rows + other.stores[name] for name, rows in self.stores.items()},
            self.groups + other.groups,
            self.classes + other.classes,
        )


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
        return _read_split(self.folder / name)

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


@lru_cache(maxsize=6)
def _read_split(folder: Path) -> Rows:
    """Read a split once for all trials of a sweep. The tokens are mapped from disk."""
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").split("\n")[:-1]]
    stores = {path.name: _rows_of(open_store(path)) for path in folder.iterdir() if path.is_dir()}
    texts, targets, groups, classes = (
        [line[name] for line in lines] for name in ("texts", "target", "group", "classes")
    )
    return Rows(texts, targets, stores, groups, classes)


def _rows_of(store: TokenStore) -> list[list[np.ndarray]]:
    tokens = np.asarray(store.tokens)
    parts = np.split(tokens, store.sentences[1:-1])
    bounds = store.documents
    return [parts[bounds[i] : bounds[i + 1]] for i in range(store.num_documents)]


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
