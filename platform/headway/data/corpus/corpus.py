"""A prepared corpus: a folder of a tokenizer, token stores and facts, named after its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.corpus.store import TokenStore, open_store
from headway.data.corpus.tokenizer import extend_tokenizer, load_tokenizer, train_tokenizer
from headway.data.sources.splitting import text_key, unit_hash

CARD = "card.md"
_FACTS = "corpus.json"
_MB = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: `tokenizer/`, the stores `train/` and `validation/`, `corpus.json` and `card.md`."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """How many documents and tokens there are, the longest sequence to train on, and where they are from.

        `digests` has one of each split's texts, which does not depend on the tokenizer.
        """
        return json.loads((self.folder / _FACTS).read_text())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the stores were made with."""
        return load_tokenizer(self.folder / "tokenizer")

    def store(self, split: str) -> TokenStore:
        """The tokens of `train` or `validation`."""
        return open_store(self.folder / split)

    def is_prepared(self) -> bool:
        """Whether the folder is there; it is there whole or not at all."""
        return (self.folder / _FACTS).is_file()


def open_corpus(folder: Path) -> Corpus:
    """A corpus prepared earlier.

    Raises:
        ConfigError: the folder is not a prepared corpus.
    """
    corpus = Corpus(folder)
    if not corpus.is_prepared():
        raise ConfigError(f"corpus: {str(folder)!r} is not a prepared corpus (no corpus.json)")
    return corpus


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `corpus.json` into a folder that is being prepared."""
    (folder / _FACTS).write_text(json.dumps(facts, indent=2))


def check_sides(train: int, held_out: int, config: CorpusConfig) -> None:
    """Refuse a corpus of which one side has no document.

    Raises:
        ConfigError: it is so.
    """
    for side, name in ((train, "train on"), (held_out, "hold out")):
        if not side:
            raise ConfigError(
                f"source: {config.source!r} has {train + held_out} distinct document(s), "
                f"too few to {name} with held_out = {config.held_out}"
            )


class ContentDigests:
    """Digests of what a corpus is made of: the settings and the texts' own digests, side by side."""

    def __init__(self, config: CorpusConfig) -> None:
        names = {
            "vocab_size",
            "lowercase",
            "language",
            "max_length",
            "extend_tokenizer",
            "tokenizer_sample_mb",
        }
        settings = config.model_dump(mode="json", include=names)
        self._whole = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=10)
        if config.tokenizer is not None:
            self._whole.update(load_tokenizer(config.tokenizer).backend_tokenizer.to_str().encode())

    def add_side(self, documents: int, digests: Iterable[bytes]) -> str:
        """Add so many documents of a side, by the digests of their texts; the digest of the side's texts."""
        side = hashlib.blake2b(digest_size=10)
        self._whole.update(documents.to_bytes(8, "big"))
        for content in digests:
            self._whole.update(content)
            side.update(content)
        return side.hexdigest()

    def name(self) -> str:
        """The name of the corpus' folder."""
        return self._whole.hexdigest()


class Sample:
    """The texts that a tokenizer is trained on: all, or those whose hash is in a fraction. Can be read again.

    Args:
        texts: a function that reads the training texts.
        size: UTF-8 bytes of all of them.
        config: how many MB make a sample.
    """

    def __init__(self, texts: Callable[[], Iterator[str]], size: int, config: CorpusConfig) -> None:
        self._texts = texts
        self._fraction = config.tokenizer_sample_mb * _MB / max(size, 1)

    def __iter__(self) -> Iterator[str]:
        if self._fraction >= 1:
            yield from self._texts()
            return
        for text in self._texts():
            if unit_hash(text_key(text), "tokenizer") < self._fraction:
                yield text


def tokenizer_for(sample: Iterable[str], config: CorpusConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that the settings name or ask to train.

    Raises:
        ConfigError: the settings name a folder without one.
    """
    if config.tokenizer is None:
        return train_tokenizer(sample, config.vocab_size, config.lowercase, config.max_length)
    tokenizer = load_tokenizer(config.tokenizer)
    if config.extend_tokenizer:
        extend_tokenizer(tokenizer, sample, config.extend_tokenizer)
    return tokenizer
