"""Rows of a prepared task, and how some of them are chosen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from headway.data.corpus.store import TokenStore, open_store
from headway.data.sampling import random_generator
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


@lru_cache(maxsize=6)
def read_split(folder: Path) -> Rows:
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
