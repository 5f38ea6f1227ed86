"""Where prepared rows come from, as it is kept beside them."""

from __future__ import annotations

from typing import TypedDict

from headway.config.sources import SourceConfig
from headway.data.sources.documents import BBC_NEWS, place_of
from headway.data.sources.globs import is_glob

MEMORY = "memory"
"""The source of texts that a Python caller passed."""


class Origin(TypedDict):
    """Where rows come from, in JSON's types.

    Attributes:
        name: a short one, such as `reviews.csv`.
        path: absolute, of a file or folder; None for a pattern, a URI, a name that `datasets` knows, or texts
            in memory.
        subset: of a `datasets` source.
        split: of a `datasets` source.
    """

    name: str
    path: str | None
    subset: str | None
    split: str | None


def origin_of(source: SourceConfig) -> Origin:
    """Where a source's rows come from.

    Raises:
        ConfigError: a path does not exist, or an extra is not installed.
    """
    if source.source == MEMORY:
        return in_memory()
    place = place_of(source.source)
    if "://" in source.source or is_glob(source.source):
        return Origin(name=source.source, path=None, subset=None, split=None)
    if place is None:
        return Origin(name=source.source, path=None, subset=source.subset, split=source.split)
    name = source.source if source.source == BBC_NEWS else place.resolve().name
    return Origin(name=name, path=str(place.resolve()), subset=None, split=None)


def in_memory() -> Origin:
    """Where texts come from that a Python caller passed."""
    return Origin(name=MEMORY, path=None, subset=None, split=None)
