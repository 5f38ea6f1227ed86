"""Prepares tasks: reads the rows of a source, checks, splits and tokenizes them, once for all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.tasks import TaskConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.store import write_store
from headway.data.corpus.tokenizer import vocabulary_digest
from headway.data.sources.origin import Origin, in_memory, origin_of
from headway.data.sources.rows import read_rows
from headway.data.sources.splitting import text_key
from headway.tasks.item import SPLITS, Item, Splits
from headway.tasks.rows import Rows
from headway.tasks.splitting import Side, groups_of, split_rows
from headway.tasks.task import Task, open_task, settings_of, task_class


def read_task(config: Any) -> Splits:
    """Read a task's rows and split them. Which rows are the test does not depend on other settings.

    Raises:
        ConfigError: a source or a row cannot be read, or nothing can be learned from a split.
    """
    kind = task_class(config.kind)
    items = _distinct(_read(kind, config))
    sides = {
        "test": Side("test", config.held_out, "held-out"),
        "validation": Side("validation", config.validation, "validation"),
    }
    apart = {name: _separate_split(kind, config, name) for name in sides}
    splits = split_rows(items, [side for name, side in sides.items() if apart[name] is None])
    splits |= {name: rows for name, rows in apart.items() if rows is not None}
    check_splits(kind, splits, config.source)
    return splits


def check_splits(kind: type[Task], splits: Splits, origin: str) -> None:
    """Check that no split is empty, and that something can be learned from them.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    for name, items in splits.items():
        if not items:
            rows = [item for side in splits.values() for item in side]
            why = "has too few rows"
            if len(set(groups_of(rows))) < len(splits) <= len(rows):
                why = "has rows that stay together because they share texts (set group_column)"
            raise ConfigError(f"task: {origin!r} {why}; the {name} split is empty")
    kind.check(splits)


def _read(kind: type[Task], config: Any) -> list[Item]:
    label_column = getattr(config, "label_column", "label")
    group_column = config.group_column
    columns = kind.columns(config) + ([group_column] if group_column else [])
    rows = read_rows(config, columns, label_column)
    items = [kind.item(config, row) for row in rows]
    if group_column:
        groups = [str(row.values[group_column]) for row in rows]
        items = [item._replace(keys=[group]) for item, group in zip(items, groups, strict=True)]
    return items


def _separate_split(kind: type[Task], config: TaskConfig, name: str) -> list[Item] | None:
    """The rows of a split with its own source or `datasets` split; None if it has neither."""
    separate = _source_of(config, name)
    return None if separate is config else _read(kind, separate)


def _source_of(config: TaskConfig, name: str) -> TaskConfig:
    """The settings with the source and `datasets` split of a split that has its own."""
    source, split = getattr(config, f"{name}_source", None), getattr(config, f"{name}_split", None)
    if source is None and split is None:
        return config
    return config.model_copy(update={"source": source or config.source, "split": split or config.split})


def _distinct(items: Sequence[Item]) -> list[Item]:
    """The first row of each group with the same texts."""
    unique: dict[bytes, Item] = {}
    for item in items:
        unique.setdefault(text_key("\n".join(item.texts)), item)
    return list(unique.values())


def prepare_task(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    stores: Path,
    *,
    kind: str = "classification",
    max_length: int = 128,
    settings: dict[str, Any] | None = None,
    sources: Mapping[str, Origin] | None = None,
) -> Task:
    """Tokenize a task's splits, unless an earlier call has done so.

    Args:
        splits: the rows of `train`, `validation` and `test`.
        tokenizer: of the encoder.
        stores: folder of all prepared tasks; each is in a folder named by a digest of its content.
        kind: of the task.
        max_length: tokens of a sequence at most, special ones included.
        settings: other settings that say what is learned.
        sources: where the rows of each split come from; from memory if not given.
    """
    about = {"kind": kind, "max_length": max_length, "settings": settings or {}}
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=10)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    groups = _groups(splits)
    for name in SPLITS:
        for item, group in zip(splits[name], groups[name], strict=True):
            facts = (name, list(item.texts), item.target, group, list(item.classes))
            digest.update(hashlib.blake2b(repr(facts).encode()).digest())
    folder = stores / digest.hexdigest()
    if not (folder / "task.json").is_file():
        cls = task_class(kind)
        with atomic_folder(folder) as draft:
            for name in SPLITS:
                _write_split(draft / name, splits[name], groups[name], cls.store(splits[name], tokenizer))
            about["vocabulary"] = vocabulary_digest(tokenizer)
            about["labels"] = cls.label_names(splits)
            about["texts"] = {name: len(splits[name]) for name in SPLITS}
            about["sources"] = sources or dict.fromkeys(SPLITS, in_memory())
            about["digests"] = {name: _rows_digest(splits[name]) for name in SPLITS}
            (draft / "task.json").write_text(json.dumps(about, indent=2))
    return open_task(folder)


def _rows_digest(items: Sequence[Item]) -> str:
    """A digest of rows that is the same whatever tokenizer they are prepared with."""
    digest = hashlib.blake2b(digest_size=10)
    for item in items:
        digest.update(hashlib.blake2b(repr((list(item.texts), item.target)).encode()).digest())
    return digest.hexdigest()


def _groups(splits: Splits) -> dict[str, list[int]]:
    """The group of each row; training and validation rows are counted together, since folds mix them."""
    train = len(splits["train"])
    mixed = groups_of([*splits["train"], *splits["validation"]])
    return {"train": mixed[:train], "validation": mixed[train:], "test": groups_of(splits["test"])}


def _write_split(folder: Path, items: Sequence[Item], groups: Sequence[int], stores: dict[str, Any]) -> None:
    for name, rows in stores.items():
        write_store(folder / name, rows)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for item, group in zip(items, groups, strict=True):
            row = {"texts": list(item.texts), "target": item.target}
            row |= {"group": group, "classes": list(item.classes)}
            stream.write(json.dumps(row) + "\n")


def prepared(config: Any, tokenizer: PreTrainedTokenizerBase, stores: Path) -> Task:
    """The task that some settings describe, prepared if need be."""
    return prepare_task(
        read_task(config),
        tokenizer,
        stores,
        kind=config.kind,
        max_length=config.max_length,
        settings=settings_of(config),
        sources={name: origin_of(_source_of(config, name)) for name in SPLITS},
    )


def retokenized(task: Task, tokenizer: PreTrainedTokenizerBase, stores: Path) -> Task:
    """The same rows, in the same splits, prepared for another tokenizer."""
    splits = {name: _items_of(task.split(name)) for name in SPLITS}
    return prepare_task(
        splits,
        tokenizer,
        stores,
        kind=task.kind,
        max_length=task.max_length,
        settings=task.settings,
        sources=task.facts["sources"],
    )


def _items_of(rows: Rows) -> list[Item]:
    """Rows as they were read; those of a group share a key."""
    parts = zip(rows.texts, rows.targets, rows.groups, rows.classes, strict=True)
    return [Item(tuple(texts), target, [str(group)], "", classes) for texts, target, group, classes in parts]
