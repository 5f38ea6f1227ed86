"""Several prepared corpora to train on at once: a small file that names them, with their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from headway.config.base import ConfigError
from headway.data.atomic import write_atomically
from headway.data.corpus.corpus import Corpus

_NAME = "mixture.json"


class CorpusSource(NamedTuple):
    """A prepared corpus, and how much of it there is among others."""

    corpus: Corpus
    weight: float


def write_mixture(stores: Path, sources: Mapping[str, CorpusSource]) -> Path:
    """Write a mixture into a folder that is named after what is in it.

    Raises:
        ConfigError: the corpora were tokenised with different vocabularies.
    """
    first, *others = sources
    vocabulary = sources[first].corpus.tokenizer.get_vocab()
    for name in others:
        if sources[name].corpus.tokenizer.get_vocab() != vocabulary:
            raise ConfigError(
                f"corpus.sources.{name}: it was tokenised with another vocabulary than {first!r}; prepare it "
                f"with tokenizer: {sources[first].corpus.folder / 'tokenizer'}"
            )
    content = json.dumps(
        {
            name: {"folder": str(corpus.folder), "weight": weight}
            for name, (corpus, weight) in sources.items()
        },
        indent=2,
    )
    folder = stores / hashlib.blake2b(content.encode(), digest_size=10).hexdigest()
    write_atomically(folder / _NAME, content)
    return folder


def is_mixture(folder: Path) -> bool:
    """Whether a folder holds a mixture."""
    return (folder / _NAME).is_file()


def open_sources(folder: Path) -> dict[str, CorpusSource]:
    """The corpora of a mixture by name; of any other folder itself, without a name."""
    if not is_mixture(folder):
        return {"": CorpusSource(Corpus(folder), 1.0)}
    content = json.loads((folder / _NAME).read_text(encoding="utf-8"))
    return {
        name: CorpusSource(Corpus(Path(source["folder"])), source["weight"])
        for name, source in content.items()
    }
