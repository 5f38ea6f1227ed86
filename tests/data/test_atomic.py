"""Folders and files that are seen whole or not at all."""

from __future__ import annotations

import stat

import pytest

from headway.data.atomic import atomic_folder, write_atomically


def test_a_folder_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as draft:
        (draft / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_folder_that_fails_never_appears(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as draft:
        (draft / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_meanwhile_is_kept(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as draft:
        (draft / "file").write_text("second")
        target.mkdir()
        (target / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]
