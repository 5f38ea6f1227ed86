"""Corpora on a cluster by Ray Data: the bits of those made in one process, also if processes die."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.corpus.build import build_corpus
from headway.ray_data import corpus as module
from headway.ray_data.corpus import prepared_corpus, uses_ray
from headway.ray_data.pieces import do_on_cluster


@dataclass(frozen=True)
class Dies:
    """Work whose process is killed the first time."""

    number: int
    folder: Path

    def __call__(self) -> int:
        mark = self.folder / str(self.number)
        if self.number % 3 == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.number**2


@dataclass(frozen=True)
class Refuses:
    def __call__(self) -> None:
        raise ConfigError("a.jsonl, line 3: not JSON")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_corpus_made_on_the_cluster_has_the_bits_of_one_made_in_a_process(
    labelled_file, ray_cluster, make_context, tmp_path, monkeypatch
):
    config = CorpusConfig(
        source=str(labelled_file), vocab_size=300, max_length=32, near_duplicates=0.8, engine="ray"
    )
    monkeypatch.setattr(module, "build_corpus", partial(build_corpus, block_bytes=9000))
    context = make_context("corpus")
    made = prepared_corpus(config, context)
    alone = build_corpus(config, tmp_path / "stores", tmp_path / "work", block_bytes=7000)
    assert made.folder != alone.folder
    assert made.folder.name == alone.folder.name
    assert files_below(made.folder) == files_below(alone.folder)
    assert not (context.folder / "corpus").exists()


def test_work_whose_process_is_killed_is_done_again(ray_cluster, tmp_path):
    works = [Dies(number, tmp_path) for number in range(7)]
    assert dict(do_on_cluster(works)) == {number: number**2 for number in range(7)}
    assert {path.name for path in tmp_path.iterdir()} == {"0", "3", "6"}


def test_what_is_wrong_with_the_input_is_told_in_its_own_line(ray_cluster):
    with pytest.raises(ConfigError, match=r"^a\.jsonl, line 3: not JSON$"):
        list(do_on_cluster([Refuses()]))


def test_no_work_needs_no_cluster():
    assert list(do_on_cluster([])) == []


@pytest.mark.parametrize(
    ("engine", "size", "expected"),
    [("auto", 10, False), ("auto", 1_000_000_000, True), ("local", 1_000_000_000, False), ("ray", 10, True)],
)
def test_the_engine_is_chosen_by_the_size_of_the_source(engine, size, expected, tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(size)  # takes no space
    assert uses_ray(CorpusConfig(source=str(path), engine=engine)) == expected
