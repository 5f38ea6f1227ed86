"""The last stage of a large corpus for a part: its texts that stay become tokens of both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.data.atomic import atomic_folder
from headway.data.corpus.parts import array, kept, texts
from headway.data.corpus.sentences import spaced_sentences
from headway.data.corpus.store import StoreWriter
from headway.data.corpus.tokenizer import load_tokenizer, tokenize

SIDES = ("train", "validation")
_SENTENCES_AT_ONCE = 2048
_REPORT = "tokens.json"


@dataclass(frozen=True)
class TokenizePart:
    """The work on one part, for any process to do.

    Attributes:
        folder: of the part.
        drops: names of the copies that are left out; see `parts.kept`.
        tokenizer: folder of the tokenizer.
        language: of the texts, whose abbreviations do not end a sentence.
        output: folder to write two stores to, `train` and `validation`; it is there whole or not at all.
    """

    folder: Path
    drops: Sequence[str]
    tokenizer: Path
    language: str
    output: Path

    def __call__(self) -> dict[str, Any]:
        """Do it, unless it was done before.

        Returns:
            For each side the number of `documents`, `sentences`, `tokens`, `words` and `bytes`, and how many
            documents have less than 2^n tokens but no less than half as many, in `lengths`.
        """
        if not (self.output / _REPORT).is_file():
            with atomic_folder(self.output) as draft:
                report = {side: self._write(draft, side) for side in SIDES}
                (draft / _REPORT).write_text(json.dumps(report))
        return json.loads((self.output / _REPORT).read_text())

    def _write(self, draft: Path, side: str) -> dict[str, Any]:
        chosen = kept(self.folder, self.drops) & (array(self.folder, "sides") == (side == "validation"))
        lengths: Counter[int] = Counter()
        with StoreWriter(draft / side) as writer:
            for document in tokenized(texts(self.folder, chosen), _loaded(self.tokenizer), self.language):
                writer.add(document)
                lengths[int(sum(map(len, document))).bit_length()] += 1
        sizes = array(self.folder, "sizes")[:, chosen].sum(axis=1, dtype=np.int64)
        return {
            "documents": int(chosen.sum()),
            "sentences": writer.sentences,
            "tokens": writer.tokens,
            "bytes": int(sizes[0]),
            "words": int(sizes[1]),
            "lengths": {str(length): count for length, count in sorted(lengths.items())},
        }


def tokenized(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, language: str
) -> Iterator[list[np.ndarray]]:
    """The token ids of the sentences of each document, int32, some thousand sentences at a time."""
    waiting: list[list[str]] = []
    for text in documents:
        waiting.append(spaced_sentences(text, language))
        if sum(map(len, waiting)) >= _SENTENCES_AT_ONCE:
            yield from _token_rows(waiting, tokenizer)
            waiting = []
    yield from _token_rows(waiting, tokenizer)


def _token_rows(documents: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[np.ndarray]]:
    rows = iter(tokenize(tokenizer, [sentence for document in documents for sentence in document]))
    yield from ([next(rows) for _ in document] for document in documents)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)
