"""The step `corpus`: trains a tokenizer on text and stores the tokens."""

from __future__ import annotations

from typing import Any

from headway.config.corpus import CorpusConfig
from headway.data.corpus.corpus import CARD, Corpus
from headway.ray_data.corpus import prepared_corpus, uses_ray
from headway.runs.context import Context, StepResult
from headway.runs.lineage.data_splits import corpus_splits
from headway.runs.lineage.step_run import add_data, step_run


def run_corpus(config: CorpusConfig, context: Context) -> StepResult:
    """Read, clean, split, tokenise and store a corpus; one that was stored before is used again.

    A small source is read before the run begins: one that is bad leaves nothing behind.
    """
    on_ray = uses_ray(config)
    small = None if on_ray else prepared_corpus(config, context, on_ray)
    with step_run(config, context) as run:
        corpus = small or prepared_corpus(config, context, on_ray)
        facts = corpus.facts
        add_data(run, context, list(corpus_splits(corpus).values()))
        run.log_metrics([(0, _figures(facts))])
        if (corpus.folder / CARD).is_file():
            run.log_file(corpus.folder / CARD)
    for line in _bad_input(corpus):
        context.display.step(context.step, line)
    return StepResult(str(corpus.folder), _headline(facts), summary=facts)


def _headline(facts: dict[str, Any]) -> str:
    documents, read = facts["documents"], facts.get("read", {})
    dropped = sum(read.get("dropped", {}).values())
    parts = [
        f"{documents['train']:,} documents to train on, {documents['validation']:,} held out, "
        f"{documents['duplicates']:,} duplicates dropped"
    ]
    if "near_duplicates" in documents:
        parts.append(f", {documents['near_duplicates']:,} near duplicates")
    if dropped:
        parts.append(f", {dropped:,} by rules")
    return f"{''.join(parts)}; {facts['tokens']['train']:,} tokens, vocabulary {facts['vocab_size']:,}"


def _bad_input(corpus: Corpus) -> list[str]:
    """What to tell of input that was left out, the first of it by name."""
    read = corpus.facts.get("read", {})
    if not read.get("bad"):
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(read["bad"].items()))
    return [f"bad input left out: {kinds}", *(f"  {line}" for line in read["bad_examples"])]


def _figures(facts: dict[str, Any]) -> dict[str, float]:
    counts = {f"{what}_{side}": n for what in ("documents", "tokens") for side, n in facts[what].items()}
    read = facts.get("read", {})
    for what in ("dropped", "bad"):
        counts |= {f"{what}_{name.replace(' ', '_')}": n for name, n in read.get(what, {}).items()}
    return {**counts, "vocab_size": facts["vocab_size"]}
