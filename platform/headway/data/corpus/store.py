"""A store of token ids, written once and memory-mapped by any number of processes.

A store is a folder of three files. The documents "a b. c." and "d.", with the tokens
[5, 6], [7] and [8], are stored as

    tokens.bin     [5, 6, 7, 8]   int32, without a header
    sentences.npy  [0, 2, 3, 4]   int64: where each sentence begins in the tokens, and the end
    documents.npy  [0, 2, 3]      int64: where each document begins in the sentences, and the end
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_CHUNK = 1 << 20
_COPIED_BYTES = 8 << 20


@dataclass(frozen=True)
class TokenStore:
    """Tokens of sentences, and sentences of documents, laid end to end, all mapped from disk.

    Attributes:
        tokens: int32, shape (tokens,).
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


class StoreWriter:
    """Writes a store document by document; a context manager, whose end completes the files.

    Attributes:
        tokens: written so far.
        sentences: written so far.
        documents: written so far.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._tokens = (folder / "tokens.bin").open("wb")
        self._sentences = OffsetsWriter(folder / "sentences.npy")
        self._documents = OffsetsWriter(folder / "documents.npy")
        self.tokens = self.sentences = self.documents = 0

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tokens.close()
        self._sentences.close()
        self._documents.close()

    def add(self, document: list[np.ndarray]) -> None:
        """Write a document, a list of its sentences' token ids; nothing if it has no token."""
        sentences = [sentence for sentence in document if len(sentence)]
        if not sentences:
            return
        lengths = np.asarray([len(sentence) for sentence in sentences], np.int64)
        np.concatenate(sentences).astype(np.int32).tofile(self._tokens)
        self._sentences.add(lengths)
        self._documents.add(np.asarray([len(sentences)], np.int64))
        self.tokens += int(lengths.sum())
        self.sentences += len(sentences)
        self.documents += 1


class OffsetsWriter:
    """Writes an .npy file of where things begin, and where the last one ends, from their lengths."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("wb")
        _write_header(self._stream, 0)
        self._end = 0
        self._count = 1
        self._waiting: list[np.ndarray] = []
        self._size = 0
        np.zeros(1, np.int64).tofile(self._stream)

    def add(self, lengths: np.ndarray) -> None:
        """Write the lengths of the next things, int64."""
        self._waiting.append(lengths)
        self._size += len(lengths)
        if self._size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._size:
            ends = np.cumsum(np.concatenate(self._waiting), dtype=np.int64) + self._end
            ends.tofile(self._stream)
            self._end, self._count = int(ends[-1]), self._count + len(ends)
        self._waiting, self._size = [], 0

    def close(self) -> None:
        """Write what remains."""
        self._flush()
        self._stream.seek(0)
        _write_header(self._stream, self._count)
        self._stream.close()


def _write_header(stream: BinaryIO, count: int) -> None:
    """The header of an array of so many int64; it is equally long for all, for numpy leaves space to grow."""
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)


def write_store(folder: Path, documents: Iterable[list[np.ndarray]]) -> None:
    """Write documents, each a list of its sentences' token ids; documents without tokens are left out."""
    with StoreWriter(folder) as writer:
        for document in documents:
            writer.add(document)


def join_stores(folder: Path, stores: Sequence[Path]) -> None:
    """Write the documents of several stores, one after the other, as one."""
    folder.mkdir(parents=True)
    with (folder / "tokens.bin").open("wb") as tokens:
        for store in stores:
            with (store / "tokens.bin").open("rb") as source:
                shutil.copyfileobj(source, tokens, _COPIED_BYTES)
    for name in ("sentences.npy", "documents.npy"):
        offsets = OffsetsWriter(folder / name)
        for store in stores:
            offsets.add(np.diff(np.load(store / name)))
        offsets.close()


def open_store(folder: Path) -> TokenStore:
    """Map a store written by `write_store`."""
    sentences = _mapped(folder / "sentences.npy")
    tokens = (
        np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r") if sentences[-1] else np.empty(0, np.int32)
    )
    return TokenStore(tokens, sentences, _mapped(folder / "documents.npy"), folder)


def _mapped(file: Path) -> np.ndarray:
    # A plain view of the map: what is taken from a memmap itself would be one too, at some microseconds each.
    return np.load(file, mmap_mode="r").view(np.ndarray)
