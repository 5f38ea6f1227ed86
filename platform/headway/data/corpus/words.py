"""Which tokens continue a word, told from the tokens alone: whole-word masking hides words, not their pieces.

A WordPiece vocabulary marks the pieces that continue a word (`##`). Byte-level BPE and SentencePiece mark the
tokens that follow a space instead (`Ġ`, `▁`), and all others begin a word or not, depending on what is before
them: of `Ġboat`, `s`, `.`, `"`, the `s` continues a word and the full stop begins one. Which characters are
parted is asked of the tokenizer's own pre-tokenizer.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from headway.config.base import ConfigError


class Edge(IntEnum):
    """What a token begins or ends with."""

    BOUNDARY = 0
    """Of words: a new one begins here."""
    INSIDE = 1
    """The middle of a word, or of a character that takes several tokens."""
    SPACE_MARK = 2
    """A mark that is a token of its own: the word begins with it."""
    LETTER = 3
    NUMBER = 4
    WHITE_SPACE = 5
    OTHER = 6
    """Punctuation and symbols."""


_SAMPLES = {Edge.LETTER: "a", Edge.NUMBER: "1", Edge.WHITE_SPACE: "\n", Edge.OTHER: ","}


class WordTable(NamedTuple):
    """What tells whether a token continues the word of the one before it.

    Attributes:
        first: uint8, shape (vocab_size,): the `Edge` that each token begins with.
        last: uint8, shape (vocab_size,): the one that it ends with.
        joined: bool, shape (edges, edges): `joined[a, b]` if one word goes on from a token that ends with `a`
            to one that begins with `b`.
    """

    first: np.ndarray
    last: np.ndarray
    joined: np.ndarray

    @classmethod
    def of_pieces(cls, continues: np.ndarray) -> WordTable:
        """The table of a vocabulary whose tokens alone tell: bool, shape (vocab_size,)."""
        joined = np.zeros((len(Edge), len(Edge)), bool)
        joined[:, Edge.INSIDE] = True
        first = np.where(continues, Edge.INSIDE, Edge.BOUNDARY).astype(np.uint8)
        return cls(first, np.full(len(first), Edge.LETTER, np.uint8), joined)

    def continues(self, input_ids: np.ndarray) -> np.ndarray:
        """Which tokens of a text continue the word of the one before: bool, shape (tokens,).

        With byte-level BPE, `Ġthe Ġbo at s .` gives False, False, True, True, False.

        Args:
            input_ids: int64, shape (tokens,).
        """
        last = self.last[input_ids[:-1]]
        if (last == Edge.INSIDE).any():
            # A token that ends in the middle of a character ends with what the character began with.
            known = np.where(last == Edge.INSIDE, 0, np.arange(len(last)))
            last = last[np.maximum.accumulate(known)]
        continued = np.zeros(len(input_ids), bool)
        continued[1:] = self.joined[last, self.first[input_ids[1:]]]
        return continued


def word_table(tokenizer: PreTrainedTokenizerBase) -> WordTable:
    """The table of a tokenizer with WordPiece, byte-level BPE or SentencePiece.

    Raises:
        ConfigError: its tokens do not tell where words begin.
    """
    backend = tokenizer.backend_tokenizer
    prefix = getattr(backend.model, "continuing_subword_prefix", None)
    if prefix:
        continues = np.zeros(len(tokenizer), bool)
        for token, index in tokenizer.get_vocab().items():
            continues[index] = token.startswith(prefix)
        return WordTable.of_pieces(continues)
    parts = _splitter(tokenizer)
    mark = _space_mark(parts)
    if mark is None:
        raise ConfigError(
            "masking.whole_words: the tokens of this tokenizer do not tell where words begin; set it to false"
        )
    to_bytes = _bytes_of_tokens(parts)
    first, last = (np.full(len(tokenizer), Edge.BOUNDARY, np.uint8) for _ in range(2))
    added = tokenizer.added_tokens_decoder
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            continue  # a word of its own
        if not token.startswith(mark):
            first[index] = _first_edge(to_bytes(token))
        last[index] = Edge.SPACE_MARK if token == mark else _last_edge(to_bytes(token))
    return WordTable(first, last, _joined(parts))


def _joined(parts: Callable[[str], list[str]]) -> np.ndarray:
    """`WordTable.joined` as a tokenizer parts samples of two characters."""
    joined = np.zeros((len(Edge), len(Edge)), bool)
    joined[:, Edge.INSIDE] = True
    for edge, sample in _SAMPLES.items():
        joined[Edge.SPACE_MARK, edge] = parts(f"a {sample}")[-1] != sample
        for other_edge, other in _SAMPLES.items():
            joined[edge, other_edge] = len(parts(sample + other)) == 1
    return joined


def _splitter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[str]]:
    """What a tokenizer makes of a text before its model sees it: pieces that no token crosses."""
    backend = tokenizer.backend_tokenizer

    def parts(text: str) -> list[str]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        if backend.pre_tokenizer is None:
            return [text]
        return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    return parts


def _space_mark(parts: Callable[[str], list[str]]) -> str | None:
    """What stands for the space in "a b"; None if nothing does."""
    mark = "".join(parts("a b")).rpartition("b")[0][-1:]
    return mark if mark not in ("", "a", " ") else None


def _bytes_of_tokens(parts: Callable[[str], list[str]]) -> Callable[[str], bytes]:
    """The bytes of a text that a token stands for; each of byte-level BPE's letters is a byte."""
    if "".join(parts("é")).endswith("Ã©"):
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
        # No text gives a token with other letters, though a vocabulary may have some.
        return lambda token: bytes(letters.get(letter, ord("?")) for letter in token)
    return lambda token: (
        # SentencePiece writes a character that it has no token for as its bytes.
        bytes([int(token[3:5], 16)]) if len(token) == 6 and token.startswith("<0x") else token.encode()
    )


def _first_edge(text: bytes) -> Edge:
    return _edge_of_character(text[: _character_length(text[0])]) if text else Edge.BOUNDARY


def _last_edge(text: bytes) -> Edge:
    start = len(text) - 1
    while start > 0 and _character_length(text[start]) == 0:
        start -= 1
    return _first_edge(text[start:])


def _character_length(lead: int) -> int:
    """How many bytes a character of UTF-8 has, by its first; 0 for a byte that is none."""
    if lead < 0x80:
        return 1
    return 0 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@cache
def _edge_of_character(text: bytes) -> Edge:
    """The kind of a character, or of most characters that begin with these bytes."""
    length = _character_length(text[0]) if text else 0
    if length == 0:
        return Edge.INSIDE
    missing = length - len(text)
    lowest = int.from_bytes(text + b"\x80" * missing, "big")
    step = max(1, 64**missing // 256)
    kinds = Counter(
        kind for number in range(0, 64**missing, step) if (kind := _kind(lowest, number, length)) is not None
    )
    return kinds.most_common(1)[0][0] if kinds else Edge.OTHER


def _kind(lowest: int, number: int, length: int) -> Edge | None:
    """The kind of the character `number` after `lowest`, in UTF-8 of so many bytes; None if there is none."""
    for place in range(length - 1):
        lowest += (number >> 6 * place & 0x3F) << 8 * place
    try:
        character = lowest.to_bytes(length, "big").decode()
    except UnicodeDecodeError:
        return None
    category = unicodedata.category(character)
    if character.isspace():
        return Edge.WHITE_SPACE
    if category in ("Cn", "Co"):
        return None
    return {"L": Edge.LETTER, "N": Edge.NUMBER}.get(category[0], Edge.OTHER)
