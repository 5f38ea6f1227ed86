"""Prepare what pretraining reads from documents in memory: they become a tokenizer and token stores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from headway.config.corpus import CorpusConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.corpus import (
    ContentDigests,
    Corpus,
    Sample,
    check_sides,
    tokenizer_for,
    write_facts,
)
from headway.data.corpus.store import open_store, write_store
from headway.data.corpus.tokenize_part import tokenized
from headway.data.sources.documents import Document, read_documents
from headway.data.sources.origin import origin_of
from headway.data.sources.splitting import drop_duplicates, split_documents


def read_splits(config: CorpusConfig) -> tuple[list[Document], list[Document], int]:
    """Training and held-out documents of a source, and how many duplicates were dropped.

    Raises:
        ConfigError: see `read_documents`; or one side of the split is empty.
    """
    documents = read_documents(config)
    unique = drop_duplicates(documents)
    train, held_out = split_documents(unique, config.held_out)
    check_sides(len(train), len(held_out), config)
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
    sides = {"train": train, "validation": held_out}
    digests = ContentDigests(config)
    of_sides = {name: digests.add_side(len(side), map(_digest, side)) for name, side in sides.items()}
    corpus = Corpus(stores / digests.name())
    if corpus.is_prepared():
        return corpus
    with atomic_folder(corpus.folder) as draft:
        size = sum(len(document.text.encode()) for document in train)
        tokenizer = tokenizer_for(Sample(lambda: (d.text for d in train), size, config), config)
        tokenizer.save_pretrained(draft / "tokenizer")
        for name, side in sides.items():
            texts = (document.text for document in side)
            write_store(draft / name, tokenized(texts, tokenizer, config.language))
        facts = {
            "documents": {"train": len(train), "validation": len(held_out), "duplicates": duplicates},
            "tokens": {name: int(open_store(draft / name).sentences[-1]) for name in sides},
            "vocab_size": len(tokenizer),
            "max_length": config.max_length,
            "source": origin_of(config),
            "digests": of_sides,
        }
        write_facts(draft, facts)
    return corpus


def _digest(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(), digest_size=16).digest()
