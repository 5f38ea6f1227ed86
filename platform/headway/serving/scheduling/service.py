"""A served model's operations, from texts to answers; each answer comes from one version."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.inference.answers import AnswerSpan, ScoredWindow, best_answers
from headway.inference.description import Ability
from headway.inference.entities import Entity, entities
from headway.inference.packing import Operation
from headway.inference.tokens import Piece
from headway.serving.scheduling.messages import Answer, Kind, LoadedRelease, Release
from headway.serving.scheduling.queue import TokenQueue
from headway.serving.scheduling.thread_batcher import Turns

if TYPE_CHECKING:
    from headway.serving.rollout.challenger import Trial

_tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
_TURN_CHARACTERS = 20_000
"""Tokenised while others wait for their own: a few milliseconds."""


class NotAbleError(ValueError):
    """The model has no head for what is asked."""


class ModelService:
    """What can be asked of one model.

    A request is bound to the version that is current when it comes, to its end.

    Attributes:
        current: the version that answers.
        queue: what waits for a replica.
        refused: versions that failed their check, and why.
        trial: of another version beside this one, if there is any.
        cached: embeddings may come from the queue's cache.
    """

    def __init__(self, current: LoadedRelease, queue: TokenQueue, *, cached: bool = True) -> None:
        self.current = current
        self.queue = queue
        self.refused: dict[str, str] = {}
        self.trial: Trial | None = None
        self.cached = cached
        self._tokenizing = Turns(_tokenizer_thread, _TURN_CHARACTERS)

    def tries(self, release: Release | None) -> bool:
        """Whether this is the version that is tried."""
        return self.trial is not None and self.trial.challenger.current.release == release

    def lacking(self, other: LoadedRelease) -> str | None:
        """What another version cannot do that this one can; None when there is nothing."""
        able = other.description.abilities
        missing = [ability for ability in self.current.description.abilities if ability not in able]
        return f"it cannot {', '.join(missing)}" if missing else None

    def end_trial(self) -> None:
        """Try no other version any more."""
        if self.trial is not None:
            self.trial.stop()
        self.trial = None

    async def embed(self, texts: Sequence[str], overlong: str, timeout: float) -> Answer:
        """A vector of unit length for each text, float32 (hidden_size,)."""
        current = self.current
        pieces = await self._pieces(current, texts, overlong=overlong)
        found = await self._compute(current, Operation("embed"), pieces, timeout, cached=True)
        vectors = _means(pieces, found, len(texts))
        if len(pieces) > len(texts):  # a mean of windows is shorter than they are
            vectors = [row / np.linalg.norm(row) for row in vectors]
        return Answer(current.release, vectors, sum(len(piece.sequence.ids) for piece in pieces))

    async def classify(self, texts: Sequence[str], overlong: str, timeout: float) -> Answer:
        """For each text, the probability of each class by its label."""
        current = self._able("classify")
        pieces = await self._pieces(current, texts, overlong=overlong)
        found = await self._compute(current, Operation("classify"), pieces, timeout)
        labels = current.description.labels
        rows = [row.tolist() for row in _means(pieces, found, len(texts))]
        return Answer(current.release, [dict(zip(labels, row, strict=True)) for row in rows])

    async def rerank(self, query: str, documents: Sequence[str], timeout: float) -> Answer:
        """How well each document fits the query: a cross-encoder's score, or the embeddings' cosine."""
        current = self.current
        if current.description.scores_pairs:
            pieces = await self._pieces(current, [query] * len(documents), documents)
            found = await self._compute(current, Operation("classify"), pieces, timeout)
            return Answer(current.release, [float(score[0]) for score in found])
        pieces = await self._pieces(current, [query, *documents])
        first, *others = await self._compute(current, Operation("embed"), pieces, timeout, cached=True)
        return Answer(current.release, [float(first @ other) for other in others])

    async def fill_mask(self, texts: Sequence[str], candidates: int, overlong: str, timeout: float) -> Answer:
        """For each text and each hidden word in it, (token, probability) of the likeliest words."""
        current = self._able("fill-mask")
        pieces = await self._pieces(current, texts, overlong="reject" if overlong == "window" else overlong)
        found = await self._compute(current, Operation("fill-mask", candidates), pieces, timeout)
        word = current.tokenizer.backend.id_to_token
        named = [
            [
                [(word(int(i)), float(p)) for i, p in zip(ids, probabilities, strict=True)]
                for ids, probabilities in masks
            ]
            for masks in found
        ]
        return Answer(current.release, named)

    async def tokens(self, texts: Sequence[str], overlong: str, timeout: float) -> Answer:
        """The entities of each text."""
        current = self._able("tokens")
        pieces = await self._pieces(current, texts, overlong=overlong)
        found = await self._compute(current, Operation("tokens"), pieces, timeout)
        windows: list[list[tuple[Piece, np.ndarray]]] = [[] for _ in texts]
        for piece, probabilities in zip(pieces, found, strict=True):
            windows[piece.text].append((piece, probabilities))
        labels = current.description.labels
        tagged: list[list[Entity]] = [
            entities(text, parts, labels) for text, parts in zip(texts, windows, strict=True)
        ]
        return Answer(current.release, tagged)

    async def answer(self, question: str, context: str, candidates: int, timeout: float) -> Answer:
        """The likeliest answers to a question that stand in a text."""
        current = self._able("answer")
        pieces = await self._pieces(current, [question], [context], overlong="window")
        found = await self._compute(current, Operation("answer"), pieces, timeout)
        windows = [_scored(piece, scores) for piece, scores in zip(pieces, found, strict=True)]
        settings = current.description.answers
        spans: list[AnswerSpan] = best_answers(context, windows, settings, candidates)
        return Answer(current.release, spans)

    async def attention(self, text: str, tokens: int, timeout: float) -> Answer:
        """The tokens, and their attention weights, float16 (layers, heads, length, length)."""
        current = self.current
        (piece,) = await self._pieces(current, [text], limit=tokens)
        (weights,) = await self._compute(current, Operation("attention"), [piece], timeout)
        return Answer(current.release, (piece.encoding.tokens, weights))

    def _able(self, ability: Ability) -> LoadedRelease:
        if ability not in self.current.description.abilities:
            can = ", ".join(self.current.description.abilities)
            raise NotAbleError(f"{self.current.release.name} cannot {ability}; it can: {can}")
        return self.current

    async def _pieces(self, current: LoadedRelease, *texts: Sequence[str], **settings: Any) -> list[Piece]:
        """Tokenise in a thread: long texts take long, and the event loop has others to serve."""
        work = partial(current.tokenizer.pieces, *texts, **settings)
        return await self._tokenizing.run(work, sum(len(text) for side in texts for text in side))

    async def _compute(
        self,
        current: LoadedRelease,
        operation: Operation,
        pieces: Sequence[Piece],
        timeout: float,
        cached: bool = False,
    ) -> list[Any]:
        kind = Kind(current.release, operation)
        cached = cached and self.cached
        return await self.queue.compute(kind, [piece.sequence for piece in pieces], timeout, cached=cached)


def _scored(piece: Piece, scores: np.ndarray) -> ScoredWindow:
    """A (question, window of the context) piece with the scores of its tokens."""
    context = [index for index, part in enumerate(piece.encoding.sequence_ids) if part == 1]
    offsets = np.asarray([piece.encoding.offsets[index] for index in context], np.int64).reshape(-1, 2)
    return ScoredWindow(scores, context[0] if context else 0, offsets)


def _means(pieces: Sequence[Piece], found: Sequence[np.ndarray], texts: int) -> list[np.ndarray]:
    """The mean of each text's windows, weighted by their lengths."""
    if len(pieces) == texts:
        return list(found)
    sums = np.zeros((texts, len(found[0])))
    weights = np.zeros((texts, 1))
    for piece, row in zip(pieces, found, strict=True):
        sums[piece.text] += row * len(piece.sequence.ids)
        weights[piece.text] += len(piece.sequence.ids)
    return list((sums / weights).astype(np.float32))
