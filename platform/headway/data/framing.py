"""The special tokens a tokenizer puts around a text, and around and between the texts of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Framing:
    """The special tokens before, between and after texts, as int64 token ids.

    BERT frames a pair as [CLS] A [SEP] B [SEP], with token type 0 up to the first [SEP], then 1; RoBERTa
    as <s> A </s></s> B </s>.
    """

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Framing:
        """Find a tokenizer's special tokens from how it encodes a pair."""
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encoding = backend.encode("a", "a")
        owners = np.asarray([-1 if owner is None else owner for owner in encoding.sequence_ids])
        ids = np.asarray(encoding.ids, dtype=np.int64)
        first, second = np.flatnonzero(owners == 0), np.flatnonzero(owners == 1)
        return cls(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])

    @property
    def single(self) -> int:
        """How many special tokens a single text gets."""
        return len(self.before) + len(self.after)

    @property
    def pair(self) -> int:
        """How many special tokens a pair gets."""
        return self.single + len(self.between)

    def one(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a framed text, and their types: all 0."""
        ids = np.concatenate([self.before, text, self.after])
        return ids, np.zeros(len(ids), np.int64)

    def two(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of a framed pair, and their types: 1 from the second text on."""
        # These are BERT's types; encoders with a single type ignore them.
        gap = min(1, len(self.between))
        ids = np.concatenate([self.before, first, self.between, second, self.after])
        head = len(self.before) + len(first) + gap
        return ids, (np.arange(len(ids)) >= head).astype(np.int64)


def cut_longest_first(first: int, second: int, max_tokens: int) -> tuple[int, int]:
    """Lengths of a pair's texts, the longer one shortened by a token until both fit into `max_tokens`.

    As in transformers' truncation `longest_first`, if both are cut, the longer one keeps the odd token.
    """
    if first + second <= max_tokens:
        return first, second
    half = max_tokens // 2
    if first <= second:
        kept = min(first, half)
        return kept, max_tokens - kept
    kept = min(second, half)
    return max_tokens - kept, kept
