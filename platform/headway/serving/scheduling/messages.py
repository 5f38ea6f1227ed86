"""What gateway and replicas say to each other: versions, packs' kinds, replies and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.inference.description import Description, describe
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer


class ReplicaLostError(Exception):
    """The replica died, or cannot be reached; another one can compute the same."""


class Release(NamedTuple):
    """A version of a model, and where its files lie."""

    name: str
    version: str
    folder: str


class Kind(NamedTuple):
    """What all sequences of a pack have in common."""

    release: Release
    operation: Operation


class Reply(NamedTuple):
    """What a replica answers.

    Attributes:
        replica: its name.
        results: one for each sequence of the pack.
    """

    replica: str
    results: Sequence[Any]


Call = Callable[[Kind, Pack], Awaitable[Reply]]


class LoadedRelease(NamedTuple):
    """A version as the gateway knows it: without weights."""

    release: Release
    description: Description
    tokenizer: TextTokenizer

    @classmethod
    def open(cls, release: Release) -> LoadedRelease:
        """Read a version's description and tokenizer."""
        folder = Path(release.folder)
        description = describe(folder)
        return cls(release, description, TextTokenizer(folder, description.max_length))


class Answer(NamedTuple):
    """Results, the version that gave them, and the tokens that were read."""

    release: Release
    results: Any
    tokens: int = 0
