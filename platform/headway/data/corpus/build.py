"""Prepare a corpus of any size, in pieces of work that any process may do, and do again.

1. `CleanBlock`: each block of the source is read, cleaned, and written as parts.
2. `FindCopies`, `MarkCopies`: exact copies, then near ones, are found a range of hashes at a time.
3. A tokenizer is trained, here, on a sample.
4. `TokenizePart`: the texts of each part that stay become tokens.
5. All tokens are joined, here, in the order of the source.

Each piece of work writes files that are there whole or not at all, named after what they depend on. So work
that died goes on with what is missing, and what comes out does not depend on who did what. Nothing is held
that grows with the corpus but the list of its parts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import headway
from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.clean_block import SHOWN_DROPPED, CleanBlock, Report
from headway.data.corpus.cleaning.duplicates import EXACT, NEAR, FindCopies, MarkCopies, ranges_of
from headway.data.corpus.cleaning.minhash import HASHES, band_width
from headway.data.corpus.corpus import (
    CARD,
    ContentDigests,
    Corpus,
    Sample,
    check_sides,
    tokenizer_for,
    write_facts,
)
from headway.data.corpus.data_card import data_card
from headway.data.corpus.parts import array, kept, texts, write_part_folders
from headway.data.corpus.store import join_stores
from headway.data.corpus.tokenize_part import SIDES, TokenizePart
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.sources.blocks import BLOCK_BYTES, plan_blocks
from headway.data.sources.origin import origin_of

_READING = {"text_column", "subset", "split", "encoding", "held_out", "clean", "near_duplicates"}
_READING |= {"on_bad_input", "max_document_mb"}

Work = Callable[[], Any]
DoAll = Callable[[Sequence[Work]], Iterator[tuple[int, Any]]]
"""Does pieces of work, in any order, and yields the index and the result of each as it is done."""


class Progress(NamedTuple):
    """How far a stage has come.

    Attributes:
        stage: its name.
        done: pieces of work, or bytes.
        total: of these.
        counts: what there is so far: `documents`, `tokens`, `bytes`, `dropped`.
    """

    stage: str
    done: int
    total: int
    counts: Mapping[str, int]


def in_this_process(works: Sequence[Work]) -> Iterator[tuple[int, Any]]:
    """See `DoAll`; one after the other."""
    yield from ((index, work()) for index, work in enumerate(works))


def build_corpus(
    config: CorpusConfig,
    stores: Path,
    work: Path,
    do_all: DoAll = in_this_process,
    tell: Callable[[Progress], None] = lambda progress: None,
    block_bytes: int = BLOCK_BYTES,
) -> Corpus:
    """Prepare a corpus, or reuse one with the same content.

    Args:
        config: where texts come from, and what becomes of them.
        stores: folder of all prepared corpora; each is named after a digest of its content.
        work: folder for what is on its way, which all who work share; it is deleted at the end. What is in
            it from an earlier, interrupted call is used.
        do_all: who does the work.
        tell: called with the progress.
        block_bytes: about how much of the source makes a piece of work.

    Raises:
        ConfigError: the source is missing, is of an unknown type, has bad input that ends the step, or has
            too few documents.
    """
    return _Build(config, stores, work, do_all, tell, block_bytes).corpus()


class _Build:
    """The stages of one corpus; what each found is what the next ones need."""

    def __init__(
        self,
        config: CorpusConfig,
        stores: Path,
        work: Path,
        do_all: DoAll,
        tell: Callable[[Progress], None],
        block_bytes: int,
    ) -> None:
        self._config = config
        self._stores = stores
        self._work = work
        self._do_all = do_all
        self._tell = tell
        self._block_bytes = block_bytes
        self._report = Report()
        self._parts: list[Path] = []
        self._drops: list[str] = []
        self._copies = {EXACT: 0, NEAR: 0}

    def corpus(self) -> Corpus:
        self._clean()
        self._drop_copies()
        counts = {side: sum(int(mask.sum()) for _, mask in self._kept(side)) for side in SIDES}
        check_sides(counts["train"], counts["validation"], self._config)
        digests = ContentDigests(self._config)
        of_sides = {side: digests.add_side(counts[side], self._digests(side)) for side in SIDES}
        corpus = Corpus(self._stores / digests.name())
        if not corpus.is_prepared():
            self._write(corpus, counts, of_sides)
        shutil.rmtree(self._work, ignore_errors=True)
        return corpus

    def _clean(self) -> None:
        settings = json.dumps([headway.__version__, self._config.model_dump(mode="json", include=_READING)])
        blocks = plan_blocks(self._config, self._block_bytes)
        folder = self._work / "blocks"
        works = [
            CleanBlock(block, self._config, folder / block.digest(settings), self._block_bytes)
            for block in blocks
        ]
        total, seen = max(1, sum(block.size for block in blocks)), Report()
        for _, report in self._do_all(works):
            report.bad_examples, report.dropped_examples = [], {}
            seen.add(report)
            dropped = sum(seen.dropped.values()) + sum(seen.bad.values())
            counts = {"documents": seen.documents, "bytes": seen.bytes, "dropped": dropped}
            self._tell(Progress("reading", seen.bytes, total, counts))
        for each in works:  # in the source's order
            report = each()
            self._report.add(report)
            self._parts += [each.folder / f"{number:04d}" for number in range(len(report.parts))]
        if not sum(self._report.parts):
            raise ConfigError(f"source: {self._config.source!r} holds no text{_left_out(self._report)}")

    def _drop_copies(self) -> None:
        documents = sum(self._report.parts)
        names = json.dumps([[str(part) for part in self._parts], self._config.near_duplicates])
        folder = self._work / f"copies-{hashlib.blake2b(names.encode(), digest_size=8).hexdigest()}"
        list_file = folder / "parts.json"
        write_part_folders(list_file, self._parts)
        self._find(EXACT, documents, list_file, folder, 1.0)
        if self._config.near_duplicates is not None:
            threshold = self._config.near_duplicates
            bands = HASHES // band_width(threshold)
            self._find(NEAR, documents * bands, list_file, folder, threshold)

    def _find(self, kind: str, records: int, parts: Path, folder: Path, threshold: float) -> None:
        ranges = ranges_of(records)
        files = [folder / f"{kind}-{number:05d}.bin" for number in range(ranges)]
        self._do(
            f"looking for {kind} copies",
            [FindCopies(parts, kind, n, ranges, file, threshold) for n, file in enumerate(files)],
        )
        marks = [MarkCopies(part, index, kind, files) for index, part in enumerate(self._parts)]
        self._copies[kind] = sum(self._do(f"dropping {kind} copies", marks))
        self._drops.append(kind)

    def _do(self, stage: str, works: Sequence[Work], counts: Callable[[Any], int] | None = None) -> list[Any]:
        results: list[Any] = []
        tokens = 0
        for _, result in self._do_all(works):
            results.append(result)
            tokens += counts(result) if counts else 0
            self._tell(Progress(stage, len(results), len(works), {"tokens": tokens} if counts else {}))
        return results

    def _kept(self, side: str) -> Iterator[tuple[Path, np.ndarray]]:
        """Each part, and which of its documents are on a side and stay."""
        for part in self._parts:
            yield part, kept(part, self._drops) & (array(part, "sides") == (side == "validation"))

    def _digests(self, side: str) -> Iterator[bytes]:
        return (array(part, "digests")[mask].tobytes() for part, mask in self._kept(side))

    def _train_texts(self) -> Iterator[str]:
        for part, mask in self._kept("train"):
            yield from texts(part, mask)

    def _write(self, corpus: Corpus, counts: dict[str, int], digests: dict[str, str]) -> None:
        config, folder = self._config, self._work / f"tokens-{corpus.folder.name}"
        tokenizer = folder / "tokenizer"
        if not tokenizer.is_dir():
            size = sum(int(array(part, "sizes")[0, mask].sum()) for part, mask in self._kept("train"))
            self._tell(Progress("making the tokenizer", 0, 1, {}))
            with atomic_folder(tokenizer) as draft:
                tokenizer_for(Sample(self._train_texts, size, config), config).save_pretrained(draft)
        outputs = [folder / f"{index:06d}" for index in range(len(self._parts))]
        works = [
            TokenizePart(part, self._drops, tokenizer, config.language, output)
            for part, output in zip(self._parts, outputs, strict=True)
        ]
        tokens = dict.fromkeys(SIDES, 0)
        sums = _sums(self._do("tokenising", works, lambda r: sum(r[side]["tokens"] for side in SIDES)))
        tokens = {side: sums[side]["tokens"] for side in SIDES}
        with atomic_folder(corpus.folder) as draft:
            shutil.copytree(tokenizer, draft / "tokenizer")
            for side in SIDES:
                join_stores(draft / side, [output / side for output in outputs])
            facts = {
                "documents": {**counts, "duplicates": self._copies[EXACT], **self._near_count()},
                "tokens": tokens,
                "vocab_size": len(load_tokenizer(tokenizer)),
                "max_length": config.max_length,
                "source": origin_of(config),
                "digests": digests,
                "read": self._found(),
                "sides": sums,
            }
            write_facts(draft, facts)
            (draft / CARD).write_text(data_card(facts, config), encoding="utf-8")

    def _near_count(self) -> dict[str, int]:
        return {} if self._config.near_duplicates is None else {"near_duplicates": self._copies[NEAR]}

    def _found(self) -> dict[str, Any]:
        """What was found in the source, for the facts."""
        report = self._report
        for kind in self._drops:
            for part in self._parts:
                if len(report.dropped_examples.get(kind, [])) >= SHOWN_DROPPED:
                    break
                mask = np.load(part / f"drops-{kind}.npy")
                report.show(kind, list(islice(texts(part, mask), SHOWN_DROPPED)))
        found = {name: value for name, value in vars(report).items() if name != "parts"}
        return {**found, "languages": dict(report.languages.most_common())}


def _left_out(report: Report) -> str:
    """What was left out of a source, for a message."""
    counts = sorted({**report.bad, **report.dropped}.items())
    return f"; left out: {', '.join(f'{count:,} {name}' for name, count in counts)}" if counts else ""


def _sums(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of each side, summed over all parts."""
    sums: dict[str, Any] = {}
    for side in SIDES:
        sums[side] = dict.fromkeys(("documents", "sentences", "tokens", "bytes", "words"), 0)
        sums[side]["lengths"] = {}
    for report in reports:
        for side, figures in report.items():
            for name, value in figures.items():
                if name != "lengths":
                    sums[side][name] += value
                    continue
                for length, count in value.items():
                    sums[side]["lengths"][length] = sums[side]["lengths"].get(length, 0) + count
    for side in SIDES:
        sums[side]["lengths"] = dict(sorted(sums[side]["lengths"].items(), key=lambda item: int(item[0])))
    return sums
