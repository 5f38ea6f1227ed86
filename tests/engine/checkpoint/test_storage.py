"""Folders on a disk and on an S3 server behave alike; states on S3 resume bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_training import same, train, weights

from headway.engine.checkpoint.storage import Folder
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
