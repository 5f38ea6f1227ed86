"""The rows of prepared corpora and tasks, as inputs of runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headway.data.corpus.corpus import Corpus
from headway.data.corpus.mixture import open_sources
from headway.data.sources.origin import Origin
from headway.tasks.task import Task
from headway.tracking.data_split import DataSplit

_SIDES = ("train", "validation")
_CONTEXTS = {"train": "training", "validation": "validation", "test": "test"}


def corpus_splits(corpus: Corpus) -> dict[str, DataSplit]:
    """The training and validation rows of a corpus, which are documents."""
    facts = corpus.facts
    return {
        name: DataSplit(
            f"{facts['source']['name']}/{name}",
            digest,
            facts["source"],
            _CONTEXTS[name],
            facts["documents"][name],
            {"tokens": facts["tokens"][name]},
        )
        for name, digest in facts["digests"].items()
    }


def pretraining_splits(folder: Path) -> dict[str, DataSplit]:
    """The training and validation rows of a corpus or of a mixture; of that also those of each source."""
    sources = {name: corpus_splits(source.corpus) for name, source in open_sources(folder).items()}
    if len(sources) == 1:
        return next(iter(sources.values()))
    whole = {side: _of_all(side, list(sources), [one[side] for one in sources.values()]) for side in _SIDES}
    each = {f"{name} {side}": one[side] for name, one in sources.items() for side in _SIDES}
    return whole | each


def _of_all(side: str, names: list[str], splits: list[DataSplit]) -> DataSplit:
    name = " + ".join(names)
    digest = hashlib.blake2b("".join(split.digest for split in splits).encode(), digest_size=10).hexdigest()
    tokens = sum(split.facts["tokens"] for split in splits)
    rows = sum(split.rows for split in splits)
    origin = Origin(name=name, path=None, subset=None, split=None)
    return DataSplit(f"{name}/{side}", digest, origin, _CONTEXTS[side], rows, {"tokens": tokens})


def task_splits(task: Task) -> dict[str, DataSplit]:
    """The training, validation and test rows of a task."""
    facts = task.facts
    return {
        name: DataSplit(
            f"{facts['sources'][name]['name']}/{name}",
            digest,
            facts["sources"][name],
            _CONTEXTS[name],
            facts["texts"][name],
        )
        for name, digest in facts["digests"].items()
    }
