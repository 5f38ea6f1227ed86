"""Prepares tasks: reads the rows of a source, checks, splits and tokenizes them, once for all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.tasks import TaskConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.store import write_store
from headway.data.corpus.tokenizer import vocabulary_digest
from headway.data.sources.rows import read_rows
from headway.data.sources.splitting import text_key, unit_hash
from headway.tasks.task import SPLITS, Item, Splits, Task, open_task, settings_of, task_class


def read_task(config: Any) -> Splits:
    """Read a task's rows and split them. Which rows are the test does not depend on other settings.

    Raises:
        ConfigError: a source or a row cannot be read, or nothing can be learned from a split.
    """
    kind = task_class(config.kind)
    items = _distinct(_read(kind, config))
    test = _separate_split(kind, config, "test")
    validation = _separate_split(kind, config, "validation")
    if test is None:
        items, test = split_items(items, config.held_out)
    if validation is None:
        items, validation = split_items(items, config.validation, salt="validation")
    splits = {"train": items, "validation": validation, "test": test}
    check_splits(kind, splits, config.source)
    return splits


def check_splits(kind: type[Task], splits: Splits, origin: str) -> None:
    """Check that no split is empty, and that something can be learned from them.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    for name, items in splits.items():
        if not items:
            raise ConfigError(f"task: {origin!r} has too few rows; the {name} split is empty")
    kind.check(splits)


def _read(kind: type[Task], config: Any) -> list[Item]:
    label_column = getattr(config, "label_column", "label")
    return [kind.item(config, row) for row in read_rows(config, kind.columns(config), label_column)]


def _separate_split(kind: type[Task], config: TaskConfig, name: str) -> list[Item] | None:
    """The rows of a split with its own source or `datasets` split; None if it has neither."""
    source, split = getattr(config, f"{name}_source"), getattr(config, f"{name}_split")
    if source is None and split is None:
        return None
    separate = {"source": source or config.source, "split": split or config.split}
    return _read(kind, config.model_copy(update=separate))


def _distinct(items: Sequence[Item]) -> list[Item]:
    """The first row of each group with the same texts."""
    unique: dict[bytes, Item] = {}
    for item in items:
        unique.setdefault(text_key("\n".join(item.texts)), item)
    return list(unique.values())


def split_items(
    items: Sequence[Item], fraction: float, salt: str = "held-out"
) -> tuple[list[Item], list[Item]]:
    """Split off about this fraction of the rows; rows with the same key stay together.

    Returns:
        The rows that are kept, and those that are split off.
    """
    kept: list[Item] = []
    held_out: list[Item] = []
    for item in items:
        (held_out if unit_hash(text_key(item.key), salt) < fraction else kept).append(item)
    return kept, held_out


def prepare_task(
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    stores: Path,
    *,
    kind: str = "classification",
    max_length: int = 128,
    settings: dict[str, Any] | None = None,
) -> Task:
    """Tokenize a task's splits, unless an earlier call has done so.

    Args:
        splits: the rows of `train`, `validation` and `test`.
        tokenizer: of the encoder.
        stores: folder of all prepared tasks; each is in a folder named by a digest of its content.
        kind: of the task.
        max_length: tokens of a sequence at most, special ones included.
        settings: other settings that say what is learned.
    """
    about = {"kind": kind, "max_length": max_length, "settings": settings or {}}
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=10)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name in SPLITS:
        for item in splits[name]:
            digest.update(hashlib.blake2b(repr((name, list(item.texts), item.target)).encode()).digest())
    folder = stores / digest.hexdigest()
    if not (folder / "task.json").is_file():
        cls = task_class(kind)
        with atomic_folder(folder) as draft:
            for name in SPLITS:
                _write_split(draft / name, splits[name], cls.store(splits[name], tokenizer))
            about["vocabulary"] = vocabulary_digest(tokenizer)
            about["labels"] = cls.label_names(splits)
            about["texts"] = {name: len(splits[name]) for name in SPLITS}
            (draft / "task.json").write_text(json.dumps(about, indent=2))
    return open_task(folder)


def _write_split(folder: Path, items: Sequence[Item], stores: dict[str, Any]) -> None:
    for name, rows in stores.items():
        write_store(folder / name, rows)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for item in items:
            stream.write(json.dumps({"texts": list(item.texts), "target": item.target}) + "\n")


def prepared(config: Any, tokenizer: PreTrainedTokenizerBase, stores: Path) -> Task:
    """The task that some settings describe, prepared if need be."""
    return prepare_task(
        read_task(config),
        tokenizer,
        stores,
        kind=config.kind,
        max_length=config.max_length,
        settings=settings_of(config),
    )
