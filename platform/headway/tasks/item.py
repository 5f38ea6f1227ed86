"""One row of a task, as it was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One row of a task.

    Attributes:
        texts: each is tokenized by itself.
        target: what is learned about them, in JSON's types.
        keys: rows that share one of them stay together in the same split.
        origin: file and line, for messages.
        classes: the names of the row's classes; none in a task without classes.
    """

    texts: Sequence[str]
    target: Any
    keys: Sequence[str]
    origin: str
    classes: Sequence[str] = ()


Splits = dict[str, list[Item]]
SPLITS = ("train", "validation", "test")
