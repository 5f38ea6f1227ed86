"""A memory-mapped store of token ids: written once, opened in an instant by any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TokenStore:
    """Tokens of sentences, and sentences of documents, laid end to end.

    Attributes:
        tokens: int32, shape (tokens,), mapped from disk.
        sentences: int64, shape (sentences + 1,): where each begins in `tokens`, and the end.
        documents: int64, shape (documents + 1,): where each begins in `sentences`, and the end.
        folder: where it lies, if it was opened; pickled, it is opened there again instead of copied.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    folder: Path | None = None

    def __reduce__(self) -> tuple[Callable[..., TokenStore], tuple[Any, ...]]:
        if self.folder is None:
            return TokenStore, (self.tokens, self.sentences, self.documents)
        return open_store, (self.folder,)

    @property
    def num_sentences(self) -> int:
        """How many sentences there are."""
        return len(self.sentences) - 1

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.documents) - 1

    def span(self, first: int, last: int) -> np.ndarray:
        """Tokens of the sentences `first` up to, not including, `last`."""
        return self.tokens[self.sentences[first] : self.sentences[last]]


def write_store(folder: Path, documents: Iterable[list[np.ndarray]]) -> None:
    """Write documents, each a list of its sentences' token ids; documents without a token are left out."""
    folder.mkdir(parents=True)
    sentence_lengths: list[int] = []
    document_lengths: list[int] = []
    with (folder / "tokens.bin").open("wb") as stream:
        for document in documents:
            sentences = [sentence for sentence in document if len(sentence)]
            if not sentences:
                continue
            document_lengths.append(len(sentences))
            sentence_lengths += [len(sentence) for sentence in sentences]
            np.concatenate(sentences).astype(np.int32).tofile(stream)
    np.save(folder / "sentences.npy", _offsets(sentence_lengths))
    np.save(folder / "documents.npy", _offsets(document_lengths))


def open_store(folder: Path) -> TokenStore:
    """Map a store written by `write_store`."""
    sentences = np.load(folder / "sentences.npy")
    tokens = (
        np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r") if sentences[-1] else np.empty(0, np.int32)
    )
    return TokenStore(tokens, sentences, np.load(folder / "documents.npy"), folder)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)
