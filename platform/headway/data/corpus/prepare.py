"""Prepare what pretraining reads, once: documents become a tokenizer and token stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.sentences import spaced_sentences
from headway.data.corpus.store import TokenStore, open_store, write_store
from headway.data.corpus.tokenizer import extend_tokenizer, load_tokenizer, tokenize, train_tokenizer
from headway.data.sources.documents import Document, read_documents
from headway.data.sources.origin import origin_of
from headway.data.sources.splitting import drop_duplicates, split_documents


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: `tokenizer/`, the stores `train/` and `validation/`, and `corpus.json`."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """How many documents and tokens there are, the longest sequence to train on, and where they are from.

        `digests` has one of each split's texts, which does not depend on the tokenizer.
        """
        return json.loads((self.folder / "corpus.json").read_text())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the stores were made with."""
        return load_tokenizer(self.folder / "tokenizer")

    def store(self, split: str) -> TokenStore:
        """The tokens of `train` or `validation`."""
        return open_store(self.folder / split)


def open_corpus(folder: Path) -> Corpus:
    """A corpus prepared earlier.

    Raises:
        ConfigError: the folder is not a prepared corpus.
    """
    if not (folder / "corpus.json").is_file():
        raise ConfigError(f"corpus: {str(folder)!r} is not a prepared corpus (no corpus.json)")
    return Corpus(folder)


def read_splits(config: CorpusConfig) -> tuple[list[Document], list[Document], int]:
    """Training and held-out documents of a source, and how many duplicates were dropped.

    Raises:
        ConfigError: see `read_documents`; or one side of the split is empty.
    """
    documents = read_documents(config)
    unique = drop_duplicates(documents)
    train, held_out = split_documents(unique, config.held_out)
    for side, name in ((train, "train on"), (held_out, "hold out")):
        if not side:
            raise ConfigError(
                f"source: {config.source!r} has {len(unique)} distinct document(s), "
                f"too few to {name} with held_out = {config.held_out}"
            )
    return train, held_out, len(documents) - len(unique)


def prepare_corpus(
    train: Sequence[Document],
    held_out: Sequence[Document],
    config: CorpusConfig,
    stores: Path,
    duplicates: int = 0,
) -> Corpus:
    """Make the tokenizer and the token stores, or reuse those of an earlier call with the same content.

    Args:
        train: documents to train on; the tokenizer learns from these alone.
        held_out: documents to evaluate on, never trained on.
        config: vocabulary and lengths.
        stores: folder of all prepared corpora; each is named after a digest of its content.
        duplicates: how many documents were dropped as duplicates, for the facts.
    """
    folder = stores / _content_digest(train, held_out, config)
    if (folder / "corpus.json").is_file():
        return Corpus(folder)
    with atomic_folder(folder) as draft:
        tokenizer = _tokenizer_for(train, config)
        tokenizer.save_pretrained(draft / "tokenizer")
        tokens = {
            "train": _write_split(draft / "train", train, tokenizer, config.language),
            "validation": _write_split(draft / "validation", held_out, tokenizer, config.language),
        }
        facts = {
            "documents": {"train": len(train), "validation": len(held_out), "duplicates": duplicates},
            "tokens": tokens,
            "vocab_size": len(tokenizer),
            "max_length": config.max_length,
            "source": origin_of(config),
            "digests": {"train": _texts_digest(train), "validation": _texts_digest(held_out)},
        }
        (draft / "corpus.json").write_text(json.dumps(facts, indent=2))
    return Corpus(folder)


def _content_digest(train: Sequence[Document], held_out: Sequence[Document], config: CorpusConfig) -> str:
    settings = config.model_dump(
        mode="json", include={"vocab_size", "lowercase", "language", "max_length", "extend_tokenizer"}
    )
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10)
    if config.tokenizer is not None:
        digest.update(load_tokenizer(config.tokenizer).backend_tokenizer.to_str().encode())
    for side in (train, held_out):
        digest.update(len(side).to_bytes(8, "big"))
        for document in side:
            digest.update(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
    return digest.hexdigest()


def _texts_digest(documents: Sequence[Document]) -> str:
    digest = hashlib.blake2b(digest_size=10)
    for document in documents:
        digest.update(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
    return digest.hexdigest()


def _tokenizer_for(train: Sequence[Document], config: CorpusConfig) -> PreTrainedTokenizerBase:
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
        if config.extend_tokenizer:
            extend_tokenizer(tokenizer, [document.text for document in train], config.extend_tokenizer)
        return tokenizer
    texts = [document.text for document in train]
    return train_tokenizer(texts, config.vocab_size, config.lowercase, config.max_length)


def _write_split(
    folder: Path, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, language: str
) -> int:
    sentences = [spaced_sentences(document.text, language) for document in documents]
    rows = iter(tokenize(tokenizer, [text for document in sentences for text in document]))
    write_store(folder, ([next(rows) for _ in document] for document in sentences))
    return int(open_store(folder).sentences[-1])
