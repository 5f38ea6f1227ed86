"""A page about a corpus: where its texts are from, what was left out, what its tokens are like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headway.config.corpus import CorpusConfig


def data_card(facts: Mapping[str, Any], config: CorpusConfig) -> str:
    """The page, in Markdown, from the facts that `corpus.json` holds."""
    read, documents = facts["read"], facts["documents"]
    sections = [
        f"# Corpus of {facts['source']['name']}\n",
        _table(
            ("", "training", "held out"),
            [
                ("documents", *(f"{documents[side]:,}" for side in ("train", "validation"))),
                *(
                    (name, *(f"{facts['sides'][s][name]:,}" for s in facts["sides"]))
                    for name in ("sentences", "words", "tokens", "bytes")
                ),
                ("tokens a word", *(_ratio(s["tokens"], s["words"]) for s in facts["sides"].values())),
                ("bytes a token", *(_ratio(s["bytes"], s["tokens"]) for s in facts["sides"].values())),
            ],
        ),
        f"The vocabulary has {facts['vocab_size']:,} tokens. Which documents are held out is decided by a "
        f"hash of each text: {config.held_out:.0%} of them.\n",
        "## What was read\n",
        _table(
            ("", "number"),
            [
                ("bytes of the source", f"{read['bytes']:,}"),
                ("documents", f"{read['documents']:,}"),
                ("empty ones, left out", f"{read['empty']:,}"),
                *((f"bad input: {kind}", f"{count:,}") for kind, count in sorted(read["bad"].items())),
                *((f"dropped by `{rule}`", f"{count:,}") for rule, count in sorted(read["dropped"].items())),
                ("exact copies, dropped", f"{documents['duplicates']:,}"),
                *(
                    [("near copies, dropped", f"{documents['near_duplicates']:,}")]
                    if "near_duplicates" in documents
                    else []
                ),
            ],
        ),
        *_examples(read),
        "## Lengths\n",
        _table(("tokens of a document", "training", "held out"), _lengths(facts["sides"])),
    ]
    if read["languages"]:
        rows = [(code, f"{count:,}") for code, count in read["languages"].items()]
        sections += ["## Languages\n", _table(("language", "documents"), rows)]
    return "\n".join(sections)


def _ratio(one: int, other: int) -> str:
    return f"{one / other:.2f}" if other else "-"


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(names)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _lengths(sides: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of how many documents have between half of a power of two tokens and that power."""
    bits = sorted({int(bit) for side in sides.values() for bit in side["lengths"]})
    return [
        (
            f"{2 ** (bit - 1) if bit else 0:,} to {max(2**bit - 1, 0):,}",
            *(f"{side['lengths'].get(str(bit), 0):,}" for side in sides.values()),
        )
        for bit in bits
    ]


def _examples(read: Mapping[str, Any]) -> list[str]:
    sections = []
    if read["bad_examples"]:
        sections += ["## The first bad inputs\n", *(f"- {line}" for line in read["bad_examples"]), ""]
    if any(read["dropped_examples"].values()):
        sections.append("## Examples of what was dropped\n")
    for rule, examples in sorted(read["dropped_examples"].items()):
        sections += [f"`{rule}`:\n", *(f"> {' '.join(text.split())}\n" for text in examples)]
    return sections
