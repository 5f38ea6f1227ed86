"""The step `corpus`: trains a tokenizer on text and stores the tokens."""

from __future__ import annotations

from headway.config.corpus import CorpusConfig
from headway.data.corpus.prepare import prepare_corpus, read_splits
from headway.runs.context import Context, StepResult


def run_corpus(config: CorpusConfig, context: Context) -> StepResult:
    """Read, split, tokenise and store a corpus; one that was stored before is used again."""
    train, held_out, duplicates = read_splits(config)
    corpus = prepare_corpus(train, held_out, config, context.stores / "corpora", duplicates)
    facts = corpus.facts
    headline = (
        f"{facts['documents']['train']:,} documents to train on, {facts['documents']['validation']:,} held "
        f"out, {facts['documents']['duplicates']:,} duplicates dropped; {facts['tokens']['train']:,} tokens, "
        f"vocabulary {facts['vocab_size']:,}"
    )
    return StepResult(str(corpus.folder), headline, summary=facts)
