"""Parts of a corpus on their way from text to tokens: folders of arrays and texts, each written once.

A part holds the texts that were read from a piece of a source and kept, in order. Its documents are numbered
from 0; a document of the whole corpus is `part << 32 | document`.

    texts.arrow      the texts, in batches
    sides.npy        bool: which are held out
    digests.npy      uint8, shape (documents, 16): of each text
    sizes.npy        uint32, shape (2, documents): UTF-8 bytes and words of each
    exact.npy        uint64, shape (3, documents): the key of each text in two halves, and its rank; sorted
    near.npy         uint64, shape (2, bands of all documents): hashes of bands, and ranks; sorted
    signatures.npy   uint32, shape (documents, 128)
    drops-….npy      bool: which were found to be copies, written by `duplicates`

A rank is the document's number, with the highest bit set if it is to be trained on: where copies are
compared, held-out documents come first, and stay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from headway.data.atomic import write_atomically
from headway.data.corpus.cleaning.minhash import band_hashes, signatures
from headway.data.sources.splitting import text_key, unit_hash

TRAINED = np.uint64(1 << 63)
PART_SHIFT = np.uint64(32)
_SCHEMA = pyarrow.schema([("text", pyarrow.large_string())])
_OPTIONS = pyarrow.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_BATCH_CHARACTERS = 1 << 20


class PartWriter:
    """Writes the files of a part; its folder is there already.

    Args:
        folder: of the part.
        held_out: the fraction of texts that is held out, by their own hash.
        band_width: of the signatures; None for no signatures.
    """

    def __init__(self, folder: Path, held_out: float, band_width: int | None) -> None:
        self._folder = folder
        self._held_out = held_out
        self._band_width = band_width
        self._texts: list[str] = []
        self._characters = 0
        self._keys: list[bytes] = []
        self._digests: list[bytes] = []
        self._sizes: list[tuple[int, int]] = []
        self._signatures: list[np.ndarray] = []
        self._writer = pyarrow.ipc.new_file(str(folder / "texts.arrow"), _SCHEMA, options=_OPTIONS)
        self.bytes = 0

    def add(self, text: str) -> None:
        """Write a text."""
        content = text.encode()
        self._keys.append(text_key(text))
        self._digests.append(hashlib.blake2b(content, digest_size=16).digest())
        self._sizes.append((len(content), len(text.split())))
        self.bytes += len(content)
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if not self._texts:
            return
        self._writer.write_batch(pyarrow.record_batch([self._texts], schema=_SCHEMA))
        if self._band_width is not None:
            self._signatures.append(signatures(self._texts))
        self._texts, self._characters = [], 0

    def close(self) -> int:
        """Write what remains; how many texts there are."""
        self._flush()
        self._writer.close()
        count = len(self._keys)
        held_out = np.asarray([unit_hash(key, "held-out") < self._held_out for key in self._keys], bool)
        ranks = np.arange(count, dtype=np.uint64) | np.where(held_out, np.uint64(0), TRAINED)
        keys = np.frombuffer(b"".join(self._keys), ">u8").reshape(count, 2).astype(np.uint64)
        digests = np.frombuffer(b"".join(self._digests), np.uint8).reshape(count, 16)
        np.save(self._folder / "sides.npy", held_out)
        np.save(self._folder / "digests.npy", digests)
        np.save(self._folder / "sizes.npy", np.asarray(self._sizes, np.uint32).reshape(count, 2).T)
        order = np.lexsort((ranks, keys[:, 1], keys[:, 0]))
        np.save(self._folder / "exact.npy", np.stack([keys[order, 0], keys[order, 1], ranks[order]]))
        if self._band_width is not None:
            self._close_signatures(ranks)
        return count

    def _close_signatures(self, ranks: np.ndarray) -> None:
        assert self._band_width is not None
        signed = np.concatenate([np.empty((0, 128), np.uint32), *self._signatures])
        bands = band_hashes(signed, self._band_width)
        hashes, owners = bands.ravel(), np.repeat(ranks, bands.shape[1])
        order = np.lexsort((owners, hashes))
        np.save(self._folder / "signatures.npy", signed)
        np.save(self._folder / "near.npy", np.stack([hashes[order], owners[order]]))


def write_part_folders(file: Path, folders: Sequence[Path]) -> None:
    """Write down the folders of all parts, in order, for `part_folders`."""
    write_atomically(file, json.dumps([str(folder) for folder in folders]))


@lru_cache(maxsize=2)
def part_folders(file: Path) -> list[Path]:
    """The folders of all parts, in order."""
    return [Path(folder) for folder in json.loads(file.read_text())]


def array(folder: Path, name: str) -> np.ndarray:
    """An array of a part, mapped from disk."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def kept(folder: Path, drops: Sequence[str]) -> np.ndarray:
    """Bool, shape (documents,): which documents of a part are in none of these drops."""
    stays = np.ones(len(array(folder, "sides")), bool)
    for name in drops:
        stays &= ~np.load(folder / f"drops-{name}.npy")
    return stays


def texts(folder: Path, chosen: np.ndarray) -> Iterator[str]:
    """The texts of a part for which `chosen` (bool, shape (documents,)) is true, in order."""
    with pyarrow.memory_map(str(folder / "texts.arrow")) as source:
        file = pyarrow.ipc.open_file(source)
        start = 0
        for number in range(file.num_record_batches):
            batch: Any = file.get_batch(number).column(0)
            here = np.flatnonzero(chosen[start : start + len(batch)])
            yield from batch.take(pyarrow.array(here)).to_pylist()
            start += len(batch)
