"""Tokenizes texts for an encoder, and keeps which part of the text each token stands for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from headway.config.base import ConfigError
from headway.inference.packing import TokenSequence
from headway.inference.sentence_modules import transformer_settings

_OVERLAP = 0.25

_CHARACTERS_PER_TOKEN = 8
"""Twice the average of English. Of a text that will be cut, so many are read first; more if need be."""

_MARGIN = 128
"""Characters before the end of a beginning whose tokens may not be those of the whole text."""


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads, and must not be cut."""


class RequestTooLargeError(ValueError):
    """A request asks for more than is computed for one request."""


class TokenBudget:
    """What is left of the tokens that a request may have.

    Args:
        total: tokens that it may have.
    """

    def __init__(self, total: int) -> None:
        self.total = self.left = total

    def spend(self, tokens: int) -> None:
        """Count some tokens.

        Raises:
            RequestTooLargeError: there are not so many left.
        """
        if tokens > self.left:
            raise RequestTooLargeError(
                f"the texts have more than {self.total:,} tokens, the most of one request; "
                "send fewer at a time"
            )
        self.left -= tokens


class Piece(NamedTuple):
    """A text, or one window of it, ready for the encoder.

    Attributes:
        text: index of the text.
        sequence: its tokens.
        encoding: the tokenizer's result, which holds the offsets of each token in the text.
    """

    text: int
    sequence: TokenSequence
    encoding: Encoding


class TextTokenizer:
    """A folder's tokenizer. Several threads may use it at once.

    Args:
        folder: with the tokenizer.
        max_length: tokens that the encoder reads at most, special ones included.
    """

    def __init__(self, folder: Path, max_length: int) -> None:
        self.backend = _load(folder)
        self.max_length = max_length

    @property
    def mask_id(self) -> int | None:
        """The id of the mask; None if the tokenizer has none."""
        return next((i for i in map(self.backend.token_to_id, ("[MASK]", "<mask>")) if i is not None), None)

    def characters(self, text: str, overlong: str) -> int:
        """About how many characters of a text are read."""
        return len(text) if overlong == "window" else min(len(text), self.max_length * _CHARACTERS_PER_TOKEN)

    def pieces(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        overlong: str = "truncate",
        limit: int | None = None,
        budget: TokenBudget | None = None,
        first: int = 0,
    ) -> list[Piece]:
        """Tokenize texts, or pairs of texts.

        Args:
            texts: what to read.
            seconds: the second text of each pair, which is the one that is cut or windowed.
            overlong: what to do with tokens that do not fit: `truncate` drops them, `window` makes several
                overlapping pieces, `reject` raises.
            limit: tokens of a piece at most, if that is less than `max_length`.
            budget: tokens that all pieces may have together; any number if None.
            first: index of the first text, if others came before it.

        Raises:
            TextTooLongError: a text does not fit and `overlong` is `reject`, or the first text of a pair
                leaves no space for the second.
            RequestTooLargeError: the budget is spent.
        """
        limit = min(limit or self.max_length, self.max_length)
        budget = budget or TokenBudget(sys.maxsize)
        read = budget.left if overlong == "window" else limit
        if seconds is None:
            found = self._singles(texts, overlong, limit, read, first)
        else:
            found = self._pairs(texts, seconds, overlong, limit, read, first)
        pieces = []
        for piece in found:
            budget.spend(len(piece.sequence.ids))
            pieces.append(piece)
        return pieces

    def _singles(
        self, texts: Sequence[str], overlong: str, limit: int, read: int, first: int
    ) -> Iterator[Piece]:
        """The pieces of texts. Nearly all texts fit, so the first encoding is nearly always the last."""
        short = [text for text in texts if not _is_long(text, limit)]
        encodings = iter(self.backend.encode_batch(short))
        for i, text in enumerate(texts, first):
            if _is_long(text, limit):
                yield from self._cut(i, self._beginning(text, read), None, overlong, limit)
            elif len((whole := next(encodings)).ids) <= limit:
                yield Piece(i, _sequence(whole), whole)
            else:
                (whole,) = self.backend.encode_batch([text], add_special_tokens=False)
                yield from self._cut(i, whole, None, overlong, limit)

    def _pairs(
        self,
        texts: Sequence[str],
        seconds: Sequence[str],
        overlong: str,
        limit: int,
        read: int,
        first: int,
    ) -> Iterator[Piece]:
        queries = {text: self._beginning(text, limit) for text in dict.fromkeys(texts)}
        short = [text for text in seconds if not _is_long(text, limit)]
        encodings = iter(self.backend.encode_batch(short, add_special_tokens=False))
        for i, (text, second) in enumerate(zip(texts, seconds, strict=True), first):
            other = self._beginning(second, read) if _is_long(second, limit) else next(encodings)
            yield from self._cut(i, other, queries[text], overlong, limit)

    def _beginning(self, text: str, tokens: int) -> Encoding:
        """The encoding of a text, or of its beginning if that has more than `tokens` tokens; no special ones.

        Its first `tokens` tokens are those of the text. A beginning may end inside a word or a special token,
        so what it has near its end does not count.
        """
        # `encode_batch` also for one text: `encode` holds the interpreter's lock meanwhile.
        characters = tokens * _CHARACTERS_PER_TOKEN
        while characters < len(text):
            (beginning,) = self.backend.encode_batch([text[:characters]], add_special_tokens=False)
            words, offsets = beginning.word_ids, beginning.offsets  # each makes a list when read
            certain = sum(
                word != words[-1] and end <= characters - _MARGIN
                for word, (_, end) in zip(words, offsets, strict=True)
            )
            if certain > tokens:
                return beginning
            characters *= 2
        (whole,) = self.backend.encode_batch([text], add_special_tokens=False)
        return whole

    def _cut(
        self, index: int, encoding: Encoding, before: Encoding | None, overlong: str, limit: int
    ) -> list[Piece]:
        capacity = limit - self.backend.num_special_tokens_to_add(before is not None)
        capacity -= len(before.ids) if before is not None else 0
        if capacity < 1:
            raise TextTooLongError(
                f"text {index}: the first text of the pair fills all {limit} tokens that the model reads"
            )
        if len(encoding.ids) > capacity and overlong == "reject":
            raise TextTooLongError(
                f"text {index} has more than {capacity} tokens, the most that the model reads of it"
            )
        if len(encoding.ids) > capacity:
            encoding.truncate(capacity, stride=int(capacity * _OVERLAP) if overlong == "window" else 0)
        windows = [encoding, *(encoding.overflowing if overlong == "window" else [])]
        return [self._piece(index, window, before) for window in windows]

    def _piece(self, index: int, encoding: Encoding, before: Encoding | None) -> Piece:
        if before is None:
            whole = self.backend.post_process(encoding)
        else:
            whole = self.backend.post_process(before, encoding)
        return Piece(index, _sequence(whole), whole)


def _is_long(text: str, tokens: int) -> bool:
    """Whether a text probably has many times more tokens than so many."""
    return len(text) > tokens * _CHARACTERS_PER_TOKEN


def _sequence(encoding: Encoding) -> TokenSequence:
    return TokenSequence(np.asarray(encoding.ids, np.int32), np.asarray(encoding.type_ids, np.uint8))


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        backend = Tokenizer.from_file(str(path))
    else:
        # Older folders hold only a vocabulary, from which transformers makes a tokenizer.
        from headway.data.corpus.tokenizer import load_tokenizer

        backend = load_tokenizer(folder).backend_tokenizer
    if backend.num_special_tokens_to_add(False) < 1:
        raise ConfigError(f"tokenizer: {str(folder)!r} adds no special token at the start or end of a text")
    if transformer_settings(folder).get("do_lower_case"):
        following = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *following])
    backend.no_truncation()
    backend.no_padding()
    return backend
