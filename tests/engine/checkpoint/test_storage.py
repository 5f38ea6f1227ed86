"""Folders on a disk and on an S3 server behave alike; states on S3 resume bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from tiny_training import same, train, weights

from headway.engine.checkpoint.storage import CheckedReader, CheckedWriter, Folder
from s3_server import bucket


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a folder in an empty bucket."""
    with bucket("states/run") as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(tmp_path / "run")
    return Folder(request.getfixturevalue("s3").replace("/run", f"/{tmp_path.name}"))


def test_folder_that_is_not_there_is_empty(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists("file")


def test_file_comes_back_with_its_checksum(folder: Folder) -> None:
    folder.create()
    folder.write("small", b"abc")
    assert folder.read("small") == b"abc"
    # The value that xxHash gives in its own test vectors for no input.
    folder.write("empty", b"")
    assert folder.checksum("empty") == (0, "99aa06d3014798d86001c324468d497f")
    assert folder.names() == ["empty", "small"]


def test_folder_is_removed_with_all_in_it(folder: Folder) -> None:
    folder.create("inner")
    folder.write("inner/file", b"1")
    folder.remove("inner")
    folder.remove("inner")
    assert "inner" not in folder.names()


def test_file_is_renamed(folder: Folder) -> None:
    folder.create()
    folder.write("draft", b"1")
    folder.move("draft", "final")
    assert folder.names() == ["final"]


def test_run_with_states_on_s3_resumes_bit_identical(s3: str) -> None:
    untouched, history = train(None)
    _, before = train(s3, stop_after=7)
    resumed, after = train(s3)
    assert resumed.start_step == 7
    assert same(weights(resumed), weights(untouched))
    assert before + after == history
    assert len(Folder(s3).names()) == 2, "only the newest two are kept"


def test_a_local_address_is_absolute_and_that_of_another_storage_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder("run").address == str(tmp_path / "run")
    assert Folder("~/run").address == str(tmp_path / "home" / "run")
    assert Folder(f"file://{tmp_path}/run").address == f"file://{tmp_path}/run"
    assert Folder(Path("run")).path("file") == str(tmp_path / "run" / "file")
    assert Folder("run").is_local
    assert not Folder("mock://bucket/run").is_local


def test_a_folder_tells_how_long_its_files_are(folder: Folder) -> None:
    folder.create("inner")
    folder.write("inner/three", b"abc")
    folder.write("inner/none", b"")
    assert folder.sizes("inner") == {"three": 3, "none": 0}
    assert folder.sizes("elsewhere") == {}


def test_a_folder_may_be_made_twice_and_deep(folder: Folder) -> None:
    folder.create("one/two")
    folder.create("one/two")
    folder.write("one/two/file", b"1")
    assert folder.exists("one/two/file") and folder.exists("one/two")
    assert not folder.exists("one/three")


def test_a_single_file_is_removed(folder: Folder) -> None:
    folder.create()
    folder.write("one", b"1")
    folder.write("two", b"2")
    folder.remove("one")
    folder.remove("one")
    assert folder.names() == ["two"]


def test_what_is_written_is_not_seen_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.write("file", b"old")
    seen = []
    monkeypatch.setattr(
        "headway.engine.checkpoint.storage.flush_to_disk",
        lambda path: seen.append((path.read_bytes(), folder.read("file"), path.name)),
    )
    folder.write("file", b"new")
    [(draft, before, name)] = seen
    assert (draft, before) == (b"new", b"old")
    assert name.startswith("file.") and name.endswith(".draft")
    assert folder.read("file") == b"new" and folder.names() == ["file"]


def test_storage_that_shows_only_whole_files_is_written_to_without_a_draft() -> None:
    folder = Folder("mock://bucket/run")
    folder.create()
    folder.write("file", b"1")
    assert (folder.names(), folder.read("file")) == (["file"], b"1")


def test_a_new_file_takes_the_place_of_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.write_new("file", b"first")
    assert not folder.write_new("file", b"second")
    assert folder.read("file") == b"first"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_checksum_of_a_long_file_is_that_of_the_whole(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 17  # two reads and a bit
    folder = Folder(tmp_path)
    folder.write("file", content)
    assert folder.checksum("file") == (len(content), xxhash.xxh3_128_hexdigest(content))


def test_a_checkpoints_files_are_summed_while_they_are_written(tmp_path: Path) -> None:
    """torch writes under a name of its own first, and asks how far it has come."""
    writer = CheckedWriter(Folder(tmp_path), "state")
    files = writer.fs
    assert files.concat_path("state", "part") == "state/part"
    assert files.init_path(Path("state")) == "state"
    assert files.validate_checkpoint_id("state")
    files.mkdir("state")
    content: Any = np.arange(3_000_000, dtype=np.int32)
    with files.create_stream("state/draft", "wb") as stream:
        assert stream.writable()
        assert stream.write(memoryview(content)) == content.nbytes
        assert stream.write(b"end") == 3
        assert stream.tell() == content.nbytes + 3
    files.rename("state/draft", "state/part")
    assert not files.exists("state/draft") and files.exists("state/part")
    whole = content.tobytes() + b"end"
    assert writer.checksums == {"state/part": (len(whole), xxhash.xxh3_128_hexdigest(whole))}
    with files.create_stream("state/part", "rb") as stream:
        assert stream.seekable() and stream.read() == whole
    files.rm_file("state/part")
    assert not files.exists("state/part")


def test_a_distributed_checkpoint_comes_back_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"weight": torch.arange(5.0), "step": torch.tensor(3)}
    all_disks: list[None] = []
    monkeypatch.setattr("os.sync", lambda: all_disks.append(None))
    writer = CheckedWriter(Folder(tmp_path), "state")
    dcp.save(state, storage_writer=writer, no_dist=True)
    assert not all_disks, "others write to them too"
    written = {path.removeprefix("state/"): total for path, total in writer.checksums.items()}
    folder = Folder(tmp_path)
    assert written.keys() == set(folder.sizes("state")) == {".metadata", "__0_0.distcp"}
    assert written == {name: folder.checksum(f"state/{name}") for name in written}
    loaded = {"weight": torch.zeros(5), "step": torch.tensor(0)}
    reader = CheckedReader(folder, "state")
    dcp.load(loaded, storage_reader=reader, no_dist=True)
    assert same(loaded, state)
    metadata = reader.read_metadata()
    assert metadata.storage_meta is not None
    assert (metadata.storage_meta.load_id, metadata.storage_meta.save_id) == (reader.load_id, writer.save_id)
