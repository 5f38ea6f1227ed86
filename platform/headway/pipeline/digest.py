"""The digest of all that a step's result depends on: its settings and the content of what it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import headway
from headway.config.base import INPUT, Config, ConfigError, is_marked
from headway.config.corpus import CorpusConfig
from headway.config.loading import validate
from headway.config.sources import SourceConfig
from headway.data.contents import Contents
from headway.data.pretraining.document_ranking import COUNTS, ORDER, RANKS
from headway.data.pretraining.stored_plan import BOUNDS, FACTS
from headway.data.sources.blocks import source_files
from headway.data.sources.documents import source_places
from headway.tracking import Tracking

_MADE_OF_THE_REST = ["golden.json", BOUNDS, FACTS, ORDER, RANKS, COUNTS]
"""Files that say nothing which those beside them do not: what registering a model puts beside its weights
(`inference/golden.py`), and the rows of a token store, which training plans."""


class Inputs:
    """Digests of what steps read: files, folders and registered models.

    Args:
        root: folder of everything that is made; what was read is remembered there.
        tracking: with the registry.
    """

    def __init__(self, root: Path, tracking: Tracking) -> None:
        self._tracking = tracking
        self._contents = Contents(root / "contents.json", ignored=_MADE_OF_THE_REST)

    def content_of(self, name: str) -> str:
        """What a path or `models:/name@alias` stands for now; any other text as it is.

        Raises:
            ConfigError: no such registered model.
        """
        if name.startswith("models:/"):
            return "/".join(self._tracking.registered_version(name))
        path = Path(name).expanduser()
        return self._contents.of(path) if path.exists() else name

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Write down what is read in the block, so that it is not read again; not if the block is refused."""
        try:
            yield
        except ConfigError:
            raise
        except BaseException:
            self._contents.remember()
            raise
        self._contents.remember()


def step_digest(verb: str, config: Config, inputs: Inputs) -> str:
    """The digest of a step whose references are replaced by what identifies the content they stand for.

    Raises:
        ConfigError: a source or a registered model that does not exist.
    """
    contents = [inputs.content_of(name) for name in input_names(config)]
    settings = json.dumps(result_settings(config), sort_keys=True)
    parts = [headway.__version__, verb, settings, *contents]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def result_settings(config: Config) -> dict[str, Any]:
    """The settings that a step's result depends on, also within those that have no types of their own."""
    settings = config.result_settings()
    return settings | {name: group.result_settings() for name, group in _untyped_groups(config).items()}


def input_names(config: Config) -> Iterator[str]:
    """The files, folders and registered models that a step's settings name, in a fixed order."""
    for group in _groups(config):
        if isinstance(group, SourceConfig):
            yield from map(str, source_places(group))
        if isinstance(group, CorpusConfig) and "://" in group.source:
            # Reading them would take as long as the step: a file that changed has another size or time.
            yield from (f"{file.address} {file.size} {file.changed}" for file in source_files(group))
        for name, field in type(group).model_fields.items():
            if is_marked(field, INPUT):
                value = getattr(group, name)
                values = value.values() if isinstance(value, dict) else [value]
                yield from (str(item) for item in values if isinstance(item, str | Path))


def _groups(value: Any) -> Iterator[Config]:
    """All groups of settings in a value."""
    if isinstance(value, Config):
        yield value
        for item in [*vars(value).values(), *_untyped_groups(value).values()]:
            yield from _groups(item)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _groups(item)


def _untyped_groups(config: Config) -> dict[str, Config]:
    """What a step shares among its runs: mappings until they are joined with what differs between those."""
    nested = config.nested_settings()
    return {field: validate(nested_class, settings, field) for field, nested_class, settings in nested}
