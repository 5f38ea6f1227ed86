"""The rows of a store, planned once and kept beside it, so that no process holds them.

A plan is a folder in the store's own, named after how it was made, such as `rows/tokens-126`:

    row_bounds.npy   int64: where each row begins, and where the last one ends; in tokens, or in sentences
    row_plan.json    figures of all rows together

Rows follow one another without a gap, so bounds say it all. The store is planned some documents at a time.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import numpy as np

from headway.data.atomic import atomic_folder
from headway.data.corpus.store import OffsetsWriter, TokenStore
from headway.data.pretraining.row_plan import SentenceRows, TokenRows, plan_sentence_rows, plan_token_rows

Kind = Literal["tokens", "sentences"]
Rows = TypeVar("Rows", TokenRows, SentenceRows)
RowsOut = TypeVar("RowsOut", covariant=True)
BOUNDS, FACTS = "row_bounds.npy", "row_plan.json"
"""Files of a plan. They say nothing that the store does not, and do not count as content of its folder."""
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Why a plan is made in memory, instead of beside its store."""
_SENTENCES_AT_ONCE = 1 << 18


class PlannedRows(Protocol[RowsOut]):
    """The rows of a store: in memory, or mapped from disk."""

    @property
    def num_rows(self) -> int:
        """How many there are."""
        ...

    def of(self, rows: np.ndarray) -> RowsOut:
        """Some of them, which are int64 indices."""
        ...

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens some of them have."""
        ...


@dataclass(frozen=True)
class PlanFacts:
    """Figures of all rows of a plan together.

    Attributes:
        rows: how many there are.
        tokens: of all.
        longest: tokens of the longest.
        left_out: tokens beyond the budget, which pairs leave out.
        one_sentence: rows that are one sentence.
    """

    rows: int = 0
    tokens: int = 0
    longest: int = 0
    left_out: int = 0
    one_sentence: int = 0

    @classmethod
    def of(cls, rows: TokenRows | SentenceRows, budget: int) -> PlanFacts:
        """Those of some rows."""
        alone = rows.last - rows.first == 1 if isinstance(rows, SentenceRows) else np.empty(0, bool)
        return cls(
            len(rows.lengths),
            int(rows.lengths.sum()),
            int(rows.lengths.max(initial=0)),
            int(np.maximum(rows.lengths - budget, 0).sum()),
            int(alone.sum()),
        )

    def __add__(self, other: PlanFacts) -> PlanFacts:
        return PlanFacts(
            self.rows + other.rows,
            self.tokens + other.tokens,
            max(self.longest, other.longest),
            self.left_out + other.left_out,
            self.one_sentence + other.one_sentence,
        )


class _MappedRows:
    """Bounds of rows, mapped from disk; pickled as the place where they are."""

    def __init__(self, store: TokenStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._bounds = np.load(folder / BOUNDS, mmap_mode="r").view(np.ndarray)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        return type(self), (self._store, self._folder)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self._bounds) - 1


class StoredTokenRows(_MappedRows):
    """The rows that `plan_token_rows` plans, mapped from disk."""

    def of(self, rows: np.ndarray) -> TokenRows:
        """Some of the rows, which are int64 indices."""
        starts = self._bounds[rows]
        return TokenRows(starts, self._bounds[rows + 1] - starts)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows."""
        return self._bounds[rows + 1] - self._bounds[rows]


class StoredSentenceRows(_MappedRows):
    """The rows that `plan_sentence_rows` plans, mapped from disk."""

    def of(self, rows: np.ndarray) -> SentenceRows:
        """Some of the rows, which are int64 indices."""
        first, last = self._bounds[rows], self._bounds[rows + 1]
        document = np.searchsorted(self._store.documents, first, side="right") - 1
        return SentenceRows(first, last, document, self._store.sentences[last] - self._store.sentences[first])

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows."""
        return self._store.sentences[self._bounds[rows + 1]] - self._store.sentences[self._bounds[rows]]


class RowLengths:
    """The lengths of rows as they are batched: limited, and with special tokens; computed when asked.

    Args:
        rows: planned.
        longest: tokens of the longest of them.
        at_least: a shorter row counts as this long.
        at_most: a longer row is cut to this.
        added: special tokens of each row.
    """

    def __init__(
        self,
        rows: PlannedRows[Any],
        longest: int,
        *,
        at_least: int = 0,
        at_most: int | None = None,
        added: int = 0,
    ) -> None:
        self._rows = rows
        self._longest = longest
        self._at_least, self._at_most, self._added = at_least, at_most, added

    def __len__(self) -> int:
        return self._rows.num_rows

    def __getitem__(self, rows: Any) -> Any:
        lengths = self._rows.lengths_of(np.asarray(rows))
        return np.clip(lengths, self._at_least, self._at_most) + self._added

    def max(self) -> int:
        """The largest."""
        return int(np.clip(self._longest, self._at_least, self._at_most)) + self._added


def planned_rows(store: TokenStore, kind: Kind, budget: int) -> tuple[PlannedRows[Any], PlanFacts]:
    """The rows of a store, and their figures; planned now if they have not been before.

    A store that is not in a folder, or in one that cannot be written to, is planned in memory.

    Args:
        store: of all documents.
        kind: rows of tokens for single sequences, or of sentences for pairs; see `row_plan`.
        budget: tokens of a row.
    """
    if store.folder is not None:
        folder = store.folder / "rows" / f"{kind}-{budget}"
        try:
            if not folder.is_dir():
                with atomic_folder(folder) as draft:
                    _write(store, kind, budget, draft)
            facts = PlanFacts(**json.loads((folder / FACTS).read_text()))
            stored = StoredTokenRows if kind == "tokens" else StoredSentenceRows
            return stored(store, folder), facts
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
    rows = _plan(store, kind, budget)
    return rows, PlanFacts.of(rows, budget)


def _plan(store: TokenStore, kind: Kind, budget: int) -> TokenRows | SentenceRows:
    return plan_token_rows(store, budget) if kind == "tokens" else plan_sentence_rows(store, budget)


def _write(store: TokenStore, kind: Kind, budget: int, folder: Path) -> None:
    facts = PlanFacts()
    bounds = OffsetsWriter(folder / BOUNDS)
    for piece in _pieces(store):
        rows = _plan(piece, kind, budget)
        facts += PlanFacts.of(rows, budget)
        bounds.add(rows.last - rows.first if isinstance(rows, SentenceRows) else rows.lengths)
    bounds.close()
    (folder / FACTS).write_text(json.dumps(vars(facts)))


def _pieces(store: TokenStore) -> Iterator[TokenStore]:
    """The store some documents at a time; tokens keep their indices, sentences count from 0 in each piece."""
    first = 0
    while first < store.num_documents:
        wanted = store.documents[first] + _SENTENCES_AT_ONCE
        last = max(first + 1, int(np.searchsorted(store.documents, wanted, side="right")) - 1)
        begin, end = store.documents[first], store.documents[last]
        documents = store.documents[first : last + 1] - begin
        yield TokenStore(store.tokens, store.sentences[begin : end + 1], documents)
        first = last


def some_rows(rows: PlannedRows[Rows], chosen: np.ndarray, budget: int) -> tuple[Rows, PlanFacts]:
    """Some of the rows, in memory, and their figures."""
    some = rows.of(chosen)
    return some, PlanFacts.of(some, budget)
