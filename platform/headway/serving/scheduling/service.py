"""What can be asked of one version of a model: from texts to packs, and from results to answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from headway.inference.answers import AnswerSettings, AnswerSpan, best_answers, scored_window
from headway.inference.description import Ability
from headway.inference.entities import Entity, entities
from headway.inference.packing import Operation
from headway.inference.tokens import Piece, RequestTooLargeError, TokenBudget
from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.messages import Answer, Kind, LoadedRelease
from headway.serving.scheduling.queue import TokenQueue
from headway.serving.scheduling.thread_batcher import ThreadBatcher

_tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
_decoder_thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
_BATCH_CHARACTERS = 20_000
"""Tokenized in one go, in a few milliseconds, for which other requests wait."""
_BATCH_TOKENS = 5_000
"""Whose scores are searched for answers or entities in one go, in a few milliseconds too."""

_MAX_CANDIDATES = 20_000
"""Words for masks in one answer. They are named on the event loop, in about 20 ms."""


class NotAbleError(ValueError):
    """The model has no head for what is asked."""


class ModelService:
    """Answers requests with one version of a model.

    A request keeps the service it began with, so all of its answer comes from one version.

    Attributes:
        loaded: the version.
        queue: what waits for a replica.
        cached: whether embeddings may come from the queue's cache.
    """

    def __init__(self, loaded: LoadedRelease, queue: TokenQueue, *, cached: bool = True) -> None:
        self.loaded = loaded
        self.queue = queue
        self.cached = cached
        self._tokenizing = ThreadBatcher(_tokenizer_thread, _BATCH_CHARACTERS, self._tokenized)
        self._decoding = ThreadBatcher(_decoder_thread, _BATCH_TOKENS)

    def _tokenized(self, waited: float, took: float) -> None:
        self.queue.on_stage("wait", waited)
        self.queue.on_stage("tokenize", took)

    async def embed(self, texts: Sequence[str], overlong: str, caller: Caller) -> Answer:
        """A vector of unit length for each text, float32 (embedding_size,)."""
        pieces = await self._pieces(caller, texts, overlong=overlong)
        rows = await self._compute(Operation("embed"), pieces, caller, cached=True)
        vectors = _means(pieces, rows, len(texts))
        if len(pieces) > len(texts):  # the mean of several windows is shorter than they are
            vectors = [row / np.linalg.norm(row) for row in vectors]
        return Answer(self.loaded.release, vectors, sum(len(piece.sequence.ids) for piece in pieces))

    async def classify(self, texts: Sequence[str], overlong: str, caller: Caller) -> Answer:
        """For each text, the probability of each class by its label."""
        self._require("classify")
        pieces = await self._pieces(caller, texts, overlong=overlong)
        rows = await self._compute(Operation("classify"), pieces, caller)
        labels = self.loaded.description.labels
        scores = [row.tolist() for row in _means(pieces, rows, len(texts))]
        return self._answer([dict(zip(labels, row, strict=True)) for row in scores])

    async def rerank(self, query: str, documents: Sequence[str], caller: Caller) -> Answer:
        """How well each document fits the query: a cross-encoder's score, or the embeddings' cosine."""
        if self.loaded.description.scores_pairs:
            pieces = await self._pieces(caller, [query] * len(documents), documents)
            rows = await self._compute(Operation("classify"), pieces, caller)
            return self._answer([float(score[0]) for score in rows])
        pieces = await self._pieces(caller, [query, *documents])
        first, *others = await self._compute(Operation("embed"), pieces, caller, cached=True)
        return self._answer([float(first @ other) for other in others])

    async def fill_mask(self, texts: Sequence[str], candidates: int, overlong: str, caller: Caller) -> Answer:
        """For each text and each masked word in it, (token, probability) of the likeliest words."""
        self._require("fill-mask")
        pieces = await self._pieces(caller, texts, overlong="reject" if overlong == "window" else overlong)
        self._check_candidates(pieces, candidates)
        rows = await self._compute(Operation("fill-mask", candidates), pieces, caller)
        word = self.loaded.tokenizer.backend.id_to_token
        named = [
            [
                [(word(int(i)), float(p)) for i, p in zip(ids, probabilities, strict=True)]
                for ids, probabilities in masks
            ]
            for masks in rows
        ]
        return self._answer(named)

    async def tokens(self, texts: Sequence[str], overlong: str, caller: Caller) -> Answer:
        """The entities of each text."""
        self._require("tokens")
        pieces = await self._pieces(caller, texts, overlong=overlong)
        rows = await self._compute(Operation("tokens"), pieces, caller)
        labels = self.loaded.description.labels
        return self._answer(await self._decode(caller, _tagged, texts, pieces, rows, labels))

    async def answer(self, question: str, context: str, candidates: int, caller: Caller) -> Answer:
        """The likeliest answers to a question in a context."""
        self._require("answer")
        pieces = await self._pieces(caller, [question], [context], overlong="window")
        rows = await self._compute(Operation("answer"), pieces, caller)
        settings = self.loaded.description.answers
        return self._answer(await self._decode(caller, _spans, context, pieces, rows, settings, candidates))

    async def attention(self, text: str, tokens: int, caller: Caller) -> Answer:
        """The tokens, and their attention weights, float16 (layers, heads, length, length)."""
        self._require("attention")
        (piece,) = await self._pieces(caller, [text], limit=tokens)
        (weights,) = await self._compute(Operation("attention"), [piece], caller)
        return self._answer((piece.encoding.tokens, weights))

    def _check_candidates(self, pieces: Sequence[Piece], candidates: int) -> None:
        masks = sum(int(np.count_nonzero(p.sequence.ids == self.loaded.tokenizer.mask_id)) for p in pieces)
        if masks * candidates > _MAX_CANDIDATES:
            raise RequestTooLargeError(
                f"the texts have {masks:,} masks with {candidates} candidates each; "
                f"one request gets at most {_MAX_CANDIDATES:,} candidates"
            )

    def _answer(self, results: Any) -> Answer:
        return Answer(self.loaded.release, results)

    def _require(self, ability: Ability) -> None:
        abilities = self.loaded.description.abilities
        if ability not in abilities:
            name = self.loaded.release.name
            raise NotAbleError(f"{name} cannot {ability}; it can: {', '.join(abilities)}")

    async def _pieces(
        self, caller: Caller, *texts: Sequence[str], overlong: str = "truncate", limit: int | None = None
    ) -> list[Piece]:
        """Tokenize in a thread, part by part: between two parts of a large request others have their turn.

        Raises:
            RequestTooLargeError: the texts have too many tokens for one request.
        """
        tokenizer, budget = self.loaded.tokenizer, TokenBudget(self.queue.request_limit)
        rows = zip(*texts, strict=True)
        sizes = [sum(tokenizer.characters(text, overlong) for text in row) for row in rows]
        pieces: list[Piece] = []
        for part in _parts(sizes, _BATCH_CHARACTERS):
            settings = {"overlong": overlong, "limit": limit, "budget": budget, "first": part.start}
            work = partial(tokenizer.pieces, *(side[part] for side in texts), **settings)
            pieces += await self._tokenizing.run(work, sum(sizes[part]), caller)
        return pieces

    async def _decode(
        self, caller: Caller, search: Callable[..., Any], text: Any, pieces: Sequence[Piece], *others: Any
    ) -> Any:
        """Search scores in a thread: a long text has thousands of spans."""
        tokens = sum(len(piece.sequence.ids) for piece in pieces)
        return await self._decoding.run(partial(search, text, pieces, *others), tokens, caller)

    async def _compute(
        self, operation: Operation, pieces: Sequence[Piece], caller: Caller, cached: bool = False
    ) -> list[Any]:
        kind = Kind(self.loaded.release, operation)
        cached = cached and self.cached
        return await self.queue.compute(kind, [piece.sequence for piece in pieces], caller, cached=cached)


def _parts(sizes: Sequence[int], max_size: int) -> Iterator[slice]:
    """Slices of successive texts with at most `max_size` characters together, or with a single text."""
    start = size = 0
    for index, more in enumerate(sizes):
        if index > start and size + more > max_size:
            yield slice(start, index)
            start, size = index, 0
        size += more
    yield slice(start, len(sizes))


def _tagged(
    texts: Sequence[str], pieces: Sequence[Piece], rows: Sequence[np.ndarray], labels: Sequence[str]
) -> list[list[Entity]]:
    """The entities of each text, from the probabilities of its pieces' tokens."""
    windows: list[list[tuple[Piece, np.ndarray]]] = [[] for _ in texts]
    for piece, probabilities in zip(pieces, rows, strict=True):
        windows[piece.text].append((piece, probabilities))
    return [entities(text, parts, labels) for text, parts in zip(texts, windows, strict=True)]


def _spans(
    context: str,
    pieces: Sequence[Piece],
    rows: Sequence[np.ndarray],
    settings: AnswerSettings,
    candidates: int,
) -> list[AnswerSpan]:
    """The best answers, from the scores of the context's windows."""
    windows = [scored_window(piece.encoding, scores) for piece, scores in zip(pieces, rows, strict=True)]
    return best_answers(context, windows, settings, candidates)


def _means(pieces: Sequence[Piece], rows: Sequence[np.ndarray], texts: int) -> list[np.ndarray]:
    """The mean of each text's windows, weighted by their lengths."""
    if len(pieces) == texts:
        return list(rows)
    sums = np.zeros((texts, len(rows[0])))
    weights = np.zeros((texts, 1))
    for piece, row in zip(pieces, rows, strict=True):
        sums[piece.text] += row * len(piece.sequence.ids)
        weights[piece.text] += len(piece.sequence.ids)
    return list((sums / weights).astype(np.float32))
