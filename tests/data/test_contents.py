"""Digests of content: what changes them, and that nothing is read twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.data.contents import Contents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "texts"
    place.mkdir()
    (place / "a.txt").write_text("one")
    (place / "b.txt").write_text("two")
    return place


def test_times_and_the_place_do_not_count_but_names_and_bytes_do(folder, tmp_path):
    contents = Contents(tmp_path / "memory.json")
    first = contents.of(folder)
    os.utime(folder / "a.txt", (1, 1))
    assert contents.of(folder) == first
    moved = folder.rename(tmp_path / "elsewhere")
    assert contents.of(moved) == first
    (moved / "a.txt").write_text("ONE")
    changed = contents.of(moved)
    (moved / "a.txt").rename(moved / "c.txt")
    assert len({first, changed, contents.of(moved)}) == 3


def test_what_is_remembered_is_not_read_again(folder, tmp_path, monkeypatch):
    memory = tmp_path / "memory.json"
    contents = Contents(memory)
    first = contents.of(folder)
    assert not memory.exists(), "nothing is written of what may be refused"
    contents.remember()
    monkeypatch.setattr("headway.data.contents._read", None)
    assert Contents(memory).of(folder) == first


def test_a_memory_that_cannot_be_written_or_read_only_costs_time(folder, tmp_path):
    (tmp_path / "memory.json").mkdir()
    contents = Contents(tmp_path / "memory.json")
    first = contents.of(folder)
    contents.remember()
    assert Contents(tmp_path / "memory.json").of(folder) == first
