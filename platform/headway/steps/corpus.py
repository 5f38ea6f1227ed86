"""The step `corpus`: trains a tokenizer on text and stores the tokens."""

from __future__ import annotations

from typing import Any

from headway.config.corpus import CorpusConfig
from headway.data.corpus.prepare import prepare_corpus, read_splits
from headway.runs.context import Context, StepResult
from headway.runs.lineage.data_splits import corpus_splits
from headway.runs.lineage.step_run import add_data, step_run


def run_corpus(config: CorpusConfig, context: Context) -> StepResult:
    """Read, split, tokenise and store a corpus; one that was stored before is used again."""
    train, held_out, duplicates = read_splits(config)
    with step_run(config, context) as run:
        corpus = prepare_corpus(train, held_out, config, context.stores / "corpora", duplicates)
        facts = corpus.facts
        add_data(run, context, list(corpus_splits(corpus).values()))
        run.log_metrics([(0, _figures(facts))])
    headline = (
        f"{facts['documents']['train']:,} documents to train on, {facts['documents']['validation']:,} held "
        f"out, {facts['documents']['duplicates']:,} duplicates dropped; {facts['tokens']['train']:,} tokens, "
        f"vocabulary {facts['vocab_size']:,}"
    )
    return StepResult(str(corpus.folder), headline, summary=facts)


def _figures(facts: dict[str, Any]) -> dict[str, float]:
    counts = {f"{what}_{side}": n for what in ("documents", "tokens") for side, n in facts[what].items()}
    return {**counts, "vocab_size": facts["vocab_size"]}
