"""Find copies among all parts of a corpus, a range of hashes at a time, in memory that does not grow.

Exact copies have the same `text_key`; the first stays, in the order of the source. Near copies share a band
of their signatures (`minhash`). Of those that an earlier text is like, by their signatures, none stays.
"Earlier" means by rank: held-out texts come before all others, so that what is like a held-out text is not
trained on. For those, sharing a band is enough: better a text too few than a held-out one trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from headway.data.atomic import write_atomically
from headway.data.corpus.cleaning.minhash import likeness
from headway.data.corpus.parts import PART_SHIFT, TRAINED, array, kept, part_folders

EXACT, NEAR = "exact", "near"
RANGE_RECORDS = 1 << 21
"""Records in a range of hashes, about: the memory of a process is some 100 bytes a record."""
_NEIGHBOURS = 64
_PAIRS_AT_ONCE = 8192


def ranges_of(records: int, per_range: int = RANGE_RECORDS) -> int:
    """Into how many ranges so many records are divided."""
    return max(1, -(-records // per_range))


@dataclass(frozen=True)
class FindCopies:
    """The work on one range of hashes: which documents are copies of earlier ones.

    Attributes:
        parts: the file that names the folders of all parts, in order.
        kind: `exact` or `near`; the second leaves out what the first dropped.
        number: of the range, from 0.
        ranges: how many there are.
        file: to write the dropped documents to, ascending, uint64.
        threshold: the likeness from which on texts are near copies.
    """

    parts: Path
    kind: str
    number: int
    ranges: int
    file: Path
    threshold: float = 1.0

    def __call__(self) -> int:
        """Do it, unless it was done before; how many documents are dropped."""
        if not self.file.is_file():
            hashes, ranks = self._records()
            dropped = np.unique(
                self._exact(hashes, ranks) if self.kind == EXACT else self._near(hashes, ranks)
            )
            write_atomically(self.file, dropped.tobytes())
        return self.file.stat().st_size // 8

    def _records(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of shape (1 or 2, records) and ranks of shape (records,), sorted by both."""
        found = []
        below, above = self._bounds
        for index, folder in enumerate(part_folders(self.parts)):
            columns = array(folder, self.kind)
            first, last = np.searchsorted(columns[0], [below, above])
            if self.number + 1 == self.ranges:
                last = columns.shape[1]
            here = np.array(columns[:, first:last])
            if self.kind == NEAR:
                stays = kept(folder, [EXACT])
                here = here[:, stays[here[-1] & ~TRAINED]]
            here[-1] |= np.uint64(index) << PART_SHIFT
            found.append(here)
        records = np.concatenate(found, axis=1)
        records = records[:, np.lexsort(records[::-1])]
        return records[:-1], records[-1]

    @property
    def _bounds(self) -> np.ndarray:
        """The first hash of this range, and of the next, which does not count for the last."""
        step = (1 << 64) // self.ranges
        return np.asarray([step * self.number, min(step * (self.number + 1), (1 << 64) - 1)], np.uint64)

    @staticmethod
    def _exact(hashes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        is_copy = np.all(hashes[:, 1:] == hashes[:, :-1], axis=0)
        return ranks[1:][is_copy] & ~TRAINED

    def _near(self, hashes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Each text that is like one of the 64 before it in its bucket, or in one with a held-out text."""
        hashes = hashes[0]
        documents, is_held_out = ranks & ~TRAINED, ranks < TRAINED
        is_dropped = self._beside_held_out(hashes, is_held_out)
        for distance in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(hashes[distance:] == hashes[:-distance])
            if not len(same):
                break
            pairs = same[~is_dropped[same + distance] & (documents[same] != documents[same + distance])]
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                some = pairs[start : start + _PAIRS_AT_ONCE]
                alike = self._likeness(documents[some], documents[some + distance]) >= self.threshold
                is_dropped[some[alike] + distance] = True
        return documents[is_dropped]

    @staticmethod
    def _beside_held_out(hashes: np.ndarray, is_held_out: np.ndarray) -> np.ndarray:
        """Whether a text to train on is in a bucket with a held-out one, which is sorted before it."""
        begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
        sizes = np.diff(np.append(begins, len(hashes)))
        return np.repeat(is_held_out[begins], sizes) & ~is_held_out

    def _likeness(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        return likeness(self._signatures(ones), self._signatures(others))

    def _signatures(self, documents: np.ndarray) -> np.ndarray:
        """The signatures of documents, from the parts that they are in."""
        owners, numbers = documents >> PART_SHIFT, documents & np.uint64((1 << 32) - 1)
        found = np.empty((len(documents), 128), np.uint32)
        for owner in np.unique(owners):
            here = owners == owner
            found[here] = self._mapped(int(owner))[numbers[here]]
        return found

    def _mapped(self, part: int) -> np.ndarray:
        if part not in self._maps:
            self._maps[part] = array(part_folders(self.parts)[part], "signatures")
        return self._maps[part]

    @cached_property
    def _maps(self) -> dict[int, np.ndarray]:
        return {}


@dataclass(frozen=True)
class MarkCopies:
    """The work on one part: which of its documents are among the copies of all ranges.

    Attributes:
        folder: of the part, to which `drops-<kind>.npy` is written.
        index: of the part.
        kind: `exact` or `near`.
        files: that `FindCopies` wrote.
    """

    folder: Path
    index: int
    kind: str
    files: Sequence[Path]

    def __call__(self) -> int:
        """Do it; how many documents are dropped."""
        is_dropped = np.zeros(len(array(self.folder, "sides")), bool)
        first = np.uint64(self.index) << PART_SHIFT
        for file in self.files:
            if not file.stat().st_size:
                continue
            dropped = np.memmap(file, np.uint64, "r")
            start, stop = np.searchsorted(dropped, [first, first + np.uint64(1 << 32)])
            is_dropped[np.asarray(dropped[start:stop]) & np.uint64((1 << 32) - 1)] = True
        draft = self.folder / f".drops-{self.kind}.npy"
        np.save(draft, is_dropped)
        draft.replace(self.folder / f"drops-{self.kind}.npy")
        return int(is_dropped.sum())
