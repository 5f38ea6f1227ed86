"""A store of token ids, written once and memory-mapped by any number of processes.

A store is a folder of three files. The documents "a b. c." and "d.", with the tokens
[5, 6], [7] and [8], are stored as

    tokens.bin     [5, 6, 7, 8]   int32, without a header
    sentences.npy  [0, 2, 3, 4]   int64: where each sentence begins in the tokens, and the end
    documents.npy  [0, 2, 3]      int64: where each document begins in the sentences, and the end
"""

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
        sentences: int64, shape (sentences + 1,): the index in `tokens` at which each begins, and the end.
        documents: int64, shape (documents + 1,): the index in `sentences` at which each begins, and the end.
        folder: the folder it was opened from, if any. A pickled store is opened from there, not copied.
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
        """The tokens of the sentences from `first` up to, but not including, `last`."""
        return self.tokens[self.sentences[first] : self.sentences[last]]


def write_store(folder: Path, documents: Iterable[list[np.ndarray]]) -> None:
    """Write documents, each a list of its sentences' token ids; documents without tokens are left out."""
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
