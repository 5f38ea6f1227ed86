"""Tokenizes texts for an encoder, and keeps which part of the text each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from headway.config.base import ConfigError
from headway.inference.packing import TokenSequence
from headway.inference.sentence_modules import transformer_settings

_OVERLAP = 0.25


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads, and must not be cut."""


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

    def pieces(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        overlong: str = "truncate",
        limit: int | None = None,
    ) -> list[Piece]:
        """Tokenize texts, or pairs of texts.

        Args:
            texts: what to read.
            seconds: the second text of each pair, which is the one that is cut or windowed.
            overlong: what to do with tokens that do not fit: `truncate` drops them, `window` makes several
                overlapping pieces, `reject` raises.
            limit: tokens of a piece at most, if that is less than `max_length`.

        Raises:
            TextTooLongError: a text does not fit and `overlong` is `reject`, or the first text of a pair
                leaves no space for the second.
        """
        limit = min(limit or self.max_length, self.max_length)
        if seconds is None:
            whole = self.backend.encode_batch(list(texts))
            return [
                piece for i, e in enumerate(whole) for piece in self._single(i, texts[i], e, overlong, limit)
            ]
        firsts = self.backend.encode_batch(list(texts), add_special_tokens=False)
        others = self.backend.encode_batch(list(seconds), add_special_tokens=False)
        return [
            piece
            for i, (first, second) in enumerate(zip(firsts, others, strict=True))
            for piece in self._cut(i, second, first, overlong, limit)
        ]

    def _single(self, index: int, text: str, whole: Encoding, overlong: str, limit: int) -> list[Piece]:
        """The pieces of a text. Nearly all texts fit, so the first encoding is nearly always the last."""
        if len(whole.ids) <= limit:
            return [Piece(index, _sequence(whole), whole)]
        return self._cut(index, self.backend.encode(text, add_special_tokens=False), None, overlong, limit)

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
                f"text {index} has {len(encoding.ids)} tokens; the model reads at most {capacity}"
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
