"""What gateway and replicas pass to each other: versions, kinds of packs, replies and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.inference.description import Description, describe
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer


class ReplicaLostError(Exception):
    """The replica died or cannot be reached. Another one can compute the same.

    Attributes:
        replica: which one; None if that is not known.
    """

    def __init__(self, reason: str, replica: str | None = None) -> None:
        super().__init__(reason)
        self.replica = replica


class LethalSequenceError(Exception):
    """Each of several replicas died while it computed this sequence and nothing else."""


class Release(NamedTuple):
    """A version of a model, and the folder with its files."""

    name: str
    version: str
    folder: str


class Kind(NamedTuple):
    """What all sequences of a pack have in common."""

    release: Release
    operation: Operation


class Reply(NamedTuple):
    """What a replica returns for a pack.

    Attributes:
        replica: the replica's name.
        results: one for each sequence of the pack.
    """

    replica: str
    results: Sequence[Any]


Call = Callable[[Kind, Pack], Awaitable[Reply]]
"""Has some replica compute a pack."""


class LoadedRelease(NamedTuple):
    """A version as the gateway holds it: without weights."""

    release: Release
    description: Description
    tokenizer: TextTokenizer

    @classmethod
    def open(cls, release: Release) -> LoadedRelease:
        """Read a version's description and tokenizer.

        Raises:
            ConfigError: the folder holds no encoder.
        """
        folder = Path(release.folder)
        description = describe(folder)
        return cls(release, description, TextTokenizer(folder, description.max_length))


class Answer(NamedTuple):
    """Results, the version that computed them, and the tokens that were read."""

    release: Release
    results: Any
    tokens: int = 0
