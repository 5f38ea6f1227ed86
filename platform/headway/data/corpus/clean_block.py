"""The first stage of a large corpus: a block of the source is read, cleaned, and written as parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.cleaning.filters import broken_rule, language_of
from headway.data.corpus.cleaning.minhash import band_width
from headway.data.corpus.cleaning.normalize import normalize
from headway.data.corpus.parts import PartWriter
from headway.data.sources.block_reader import BadInput, read_block
from headway.data.sources.blocks import BLOCK_BYTES, Block

SHOWN_BAD = 10
SHOWN_DROPPED = 3
_SHOWN_CHARACTERS = 200
_REPORT = "report.json"


@dataclass
class Report:
    """What happened to the documents of a block, or of several.

    Attributes:
        bytes: of the source, as they lie on disk.
        documents: that were read, without empty ones and bad input.
        empty: documents of nothing but white space.
        bad: kind of bad input → how often.
        bad_examples: the first ones, in words.
        dropped: name of a rule → how many documents it dropped.
        dropped_examples: name of a rule → the beginnings of the first ones.
        languages: ISO 639 code → kept documents, if languages are told apart.
        parts: the number of documents in each part.
    """

    bytes: int = 0
    documents: int = 0
    empty: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_examples: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_examples: dict[str, list[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    parts: list[int] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Count the documents of a later block too."""
        self.bytes += other.bytes
        self.documents += other.documents
        self.empty += other.empty
        self.bad += other.bad
        self.bad_examples = (self.bad_examples + other.bad_examples)[:SHOWN_BAD]
        self.dropped += other.dropped
        self.languages += other.languages
        for rule, examples in other.dropped_examples.items():
            self.show(rule, examples)
        self.parts += other.parts

    def show(self, rule: str, texts: list[str]) -> None:
        """Keep the beginnings of the first texts that a rule dropped."""
        shown = self.dropped_examples.setdefault(rule, [])
        shown += [text[:_SHOWN_CHARACTERS] for text in texts[: SHOWN_DROPPED - len(shown)]]

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Report:
        """The report that `vars` gave."""
        counters = {name: Counter(values[name]) for name in ("bad", "dropped", "languages")}
        return cls(**values | counters)


@dataclass(frozen=True)
class CleanBlock:
    """The work of the first stage on one block, for any process to do.

    Attributes:
        block: to read.
        config: how.
        folder: to write the parts below, in folders `0000`, `0001`, …; it is there whole or not at all.
        part_bytes: of texts, from which on a part is closed and the next begun.
    """

    block: Block
    config: CorpusConfig
    folder: Path
    part_bytes: int = BLOCK_BYTES

    def __call__(self) -> Report:
        """Do it, or read what was done before.

        Raises:
            ConfigError: the block has bad input, and `on_bad_input` is `fail`.
        """
        file = self.folder / _REPORT
        if not file.is_file():
            with atomic_folder(self.folder) as draft:
                report = Report(bytes=self.block.size)
                self._write_parts(draft, self._clean_texts(report), report)
                (draft / _REPORT).write_text(json.dumps(vars(report)))
        return Report.of_json(json.loads(file.read_text()))

    def _clean_texts(self, report: Report) -> Iterator[str]:
        config = self.config
        for item in read_block(self.block, config):
            if isinstance(item, BadInput):
                if config.on_bad_input == "fail":
                    raise ConfigError(f"{item.origin}: {item.problem}")
                report.bad[item.kind] += 1
                if len(report.bad_examples) < SHOWN_BAD:
                    report.bad_examples.append(f"{item.origin}: {item.problem}")
                continue
            if not item.strip():
                report.empty += 1
                continue
            report.documents += 1
            if config.clean is None:
                yield item
                continue
            text = normalize(item, config.clean)
            rule = broken_rule(text, config.clean) if text.strip() else "nothing visible"
            if rule is not None:
                report.dropped[rule] += 1
                report.show(rule, [text])
                continue
            if config.clean.languages:
                report.languages[language_of(text)] += 1
            yield text

    def _write_parts(self, draft: Path, texts: Iterator[str], report: Report) -> None:
        threshold = self.config.near_duplicates
        width = None if threshold is None else band_width(threshold)
        writer: PartWriter | None = None
        for text in texts:
            if writer is None:
                folder = draft / f"{len(report.parts):04d}"
                folder.mkdir()
                writer = PartWriter(folder, self.config.held_out, width)
            writer.add(text)
            if writer.bytes >= self.part_bytes:
                report.parts.append(writer.close())
                writer = None
        if writer is not None:
            report.parts.append(writer.close())
