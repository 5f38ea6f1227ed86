"""The rows of prepared corpora and tasks, as inputs of runs."""

from __future__ import annotations

from headway.data.corpus.corpus import Corpus
from headway.tasks.task import Task
from headway.tracking.data_split import DataSplit

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
