"""A corpus made in pieces is the one made in memory, however it is cut and however often it dies."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from headway.config.base import ConfigError
from headway.config.corpora.cleaning import CleaningConfig
from headway.config.corpus import CorpusConfig
from headway.data.corpus import clean_block
from headway.data.corpus.build import Work, build_corpus, in_this_process
from headway.data.corpus.corpus import CARD, Corpus
from headway.data.corpus.prepare import prepare_corpus, read_splits

COMMON = ("documents", "tokens", "vocab_size", "max_length", "source", "digests")


@pytest.fixture
def config(texts, tmp_path) -> CorpusConfig:
    """120 texts, a third of them twice."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[::3]]))
    return CorpusConfig(source=str(path), vocab_size=300, max_length=32)


def files_of(corpus: Corpus) -> dict[str, bytes]:
    return {
        str(p.relative_to(corpus.folder)): p.read_bytes() for p in corpus.folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("sample_mb", [256, 1])
@pytest.mark.parametrize("block_bytes", [1000, 5000, 1 << 25])
def test_the_store_is_bit_for_bit_the_one_made_in_memory(
    block_bytes, sample_mb, config, tmp_path, monkeypatch
):
    if sample_mb == 1:  # so few texts are less than a sample of 1 MB
        monkeypatch.setattr("headway.data.corpus.corpus._MB", 10_000)
    config = config.model_copy(update={"tokenizer_sample_mb": sample_mb})
    train, held_out, duplicates = read_splits(config)
    alone = prepare_corpus(train, held_out, config, tmp_path / "memory", duplicates)
    pieces = build_corpus(config, tmp_path / "stores", tmp_path / "work", block_bytes=block_bytes)
    assert pieces.folder.name == alone.folder.name
    assert {name: pieces.facts[name] for name in COMMON} == {name: alone.facts[name] for name in COMMON}
    mine, theirs = files_of(pieces), files_of(alone)
    del mine[CARD], mine["corpus.json"], theirs["corpus.json"]
    assert mine == theirs
    assert not (tmp_path / "work").exists()


class DeathError(Exception):
    pass


def dying(after: int, seed: int):
    """Does work in a random order, and dies after so many pieces."""

    def do(works: Sequence[Work]) -> Iterator[tuple[int, object]]:
        nonlocal after
        for index in random.Random(seed).sample(range(len(works)), len(works)):
            if after == 0:
                raise DeathError
            after -= 1
            yield index, works[index]()

    return do


def test_work_that_died_goes_on_with_what_is_missing_and_gives_the_same_bits(config, tmp_path, monkeypatch):
    config = config.model_copy(update={"near_duplicates": 0.8})
    whole = build_corpus(config, tmp_path / "whole", tmp_path / "w", block_bytes=4000)
    read: list[object] = []
    original = clean_block.read_block

    def noted(block, config):
        read.append(block)
        return original(block, config)

    monkeypatch.setattr(clean_block, "read_block", noted)
    deaths = 0
    for seed, after in enumerate([0, 3, 9, 14, 30]):
        with pytest.raises(DeathError):
            build_corpus(config, tmp_path / "stores", tmp_path / "work", dying(after, seed), block_bytes=4000)
        deaths += 1
    again = build_corpus(config, tmp_path / "stores", tmp_path / "work", block_bytes=4000)
    assert deaths == 5
    assert len(read) == len(set(read))  # no block was read twice
    assert files_of(again) == files_of(whole)


def test_bad_input_ends_the_step_or_is_counted_and_named(config, tmp_path):
    with Path(config.source).open("a") as file:
        file.write('{"text": 7}\n{"no": 1}\nnot json\n{"text": "  "}\n')
    with pytest.raises(ConfigError, match=r"texts\.jsonl, line 161: column 'text' holds int, not text"):
        build_corpus(config, tmp_path / "stores", tmp_path / "work")
    config = config.model_copy(update={"on_bad_input": "skip"})
    read = build_corpus(config, tmp_path / "stores", tmp_path / "work").facts["read"]
    assert read["bad"] == {"no text": 2, "not JSON": 1}
    assert (read["documents"], read["empty"]) == (160, 1)
    assert [line.partition("jsonl, ")[2] for line in read["bad_examples"]] == [
        "line 161: column 'text' holds int, not text",
        "line 162: no column 'text'; it has: no",
        "line 163: not JSON: Expecting value",
    ]


def test_what_rules_drop_is_counted_and_shown_on_the_card(config, tmp_path):
    with Path(config.source).open("a") as file:
        file.write(
            json.dumps({"text": "1234 5678 !!! 9999"}) + "\n" + json.dumps({"text": "again\n" * 30}) + "\n"
        )
    config = config.model_copy(update={"clean": CleaningConfig(max_repeated_words=1.0)})
    corpus = build_corpus(config, tmp_path / "stores", tmp_path / "work", block_bytes=4000)
    assert corpus.facts["read"]["dropped"] == {"min_letters": 1, "max_duplicate_lines": 1}
    card = (corpus.folder / CARD).read_text()
    assert "| dropped by `min_letters` | 1 |" in card
    assert "| exact copies, dropped | 40 |" in card
    assert "> 1234 5678 !!! 9999" in card


def test_too_few_documents_are_refused(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps({"text": "Only this."}) + "\n")
    with pytest.raises(ConfigError, match=r"has 1 distinct document\(s\), too few to"):
        build_corpus(CorpusConfig(source=str(path)), tmp_path / "stores", tmp_path / "work")


def test_progress_ends_at_the_whole_of_each_stage(config, tmp_path):
    told: dict[str, tuple[int, int]] = {}
    build_corpus(
        config,
        tmp_path / "stores",
        tmp_path / "work",
        in_this_process,
        lambda progress: told.update({progress.stage: (progress.done, progress.total)}),
        block_bytes=4000,
    )
    told.pop("making the tokenizer")
    assert len(told) == 4
    assert all(done == total for done, total in told.values())
