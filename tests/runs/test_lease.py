"""Two drivers never work in one folder: the second is told who the first is, unless that one is dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway.config.base import ConfigError
from headway.engine.checkpoint.storage import Folder
from headway.runs.lease import Driver, Lease, LeaseLostError, _content, this_machine
from s3_server import bucket
from waiting import wait_until


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a folder in an empty bucket."""
    with bucket("runs/NAME") as address:
        yield address


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(tmp_path / "run")
    return Folder(request.getfixturevalue("s3").replace("NAME", tmp_path.name))


def lease(folder: Folder, **settings: Any) -> Lease:
    return Lease(folder, **{"beat_seconds": 0.05, "expires_seconds": 1.0} | settings)


def elsewhere(**settings: Any) -> Driver:
    """A driver of another machine, whose clock is wrong by years."""
    return replace(Driver.this(), machine="other", host="far", since="1999-01-01 00:00:00 UTC", **settings)


def put(folder: Folder, driver: Driver) -> None:
    folder.create()
    folder.write("lease.json", _content(driver))


def test_a_second_driver_is_refused_in_one_line_that_names_the_first(folder: Folder) -> None:
    with lease(folder).held():
        with pytest.raises(ConfigError) as refused, lease(folder).held():
            pass
        assert folder.exists("lease.json"), "the first still holds it"
    message = str(refused.value)
    assert (
        f"another driver is at work there: process {os.getpid()} on {os.uname().nodename}, since 2" in message
    )
    assert "\n" not in message
    assert not folder.exists("lease.json")
    with lease(folder).held():
        pass


def test_a_driver_elsewhere_that_lives_is_seen_to_live(folder: Folder) -> None:
    put(folder, elsewhere(pid=7))
    ended = threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.1):
            beat += 1
            put(folder, elsewhere(pid=7, beat=beat))

    other = threading.Thread(target=live)
    other.start()
    told: list[str] = []
    try:
        with pytest.raises(ConfigError, match="process 7 on far"):
            lease(folder, expires_seconds=60.0, tell=told.append)._acquire()
    finally:
        ended.set()
        other.join()
    assert "waiting up to 60 s" in told[0]


def test_the_lease_of_a_driver_elsewhere_that_died_expires(folder: Folder) -> None:
    put(folder, elsewhere())
    started = time.monotonic()
    with lease(folder).held():
        assert time.monotonic() - started >= 1.0


def test_a_killed_drivers_lease_is_taken_at_once_on_its_machine(tmp_path: Path) -> None:
    if not this_machine():
        pytest.fail("this test needs /proc")
    script = f"""
import time
from headway.engine.checkpoint.storage import Folder
from headway.runs.lease import Lease
with Lease(Folder({str(tmp_path)!r})).held():
    print("held", flush=True)
    time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {first.pid} on"):
        lease(Folder(tmp_path))._acquire()
    first.send_signal(signal.SIGKILL)
    first.wait()
    told: list[str] = []
    with lease(Folder(tmp_path), expires_seconds=600.0, tell=told.append).held():
        assert told == []


def test_another_process_of_the_same_number_is_not_taken_for_the_dead_one(tmp_path: Path) -> None:
    put(Folder(tmp_path), replace(Driver.this(), started="1"))
    with lease(Folder(tmp_path), expires_seconds=600.0).held():
        pass


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["", "in a script"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_driver_whose_lease_was_taken_over_ends(folder: Folder, interrupts: None) -> None:
    lost = pytest.raises(LeaseLostError, match="another driver has taken over: process 7 on far")
    with lost, lease(folder).held():
        wait_until(lambda: put(folder, elsewhere(pid=7)))  # until one falls between two beats
    assert folder.exists("lease.json"), "the other one's is left alone"


def test_storage_that_is_away_for_a_moment_takes_no_lease_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    holder = lease(folder)
    read = folder.read
    failures = iter(range(3))

    def unreliable(name: str) -> bytes:
        if next(failures, None) is not None:
            raise OSError("the storage timed out")
        return read(name)

    with holder.held():
        monkeypatch.setattr(folder, "read", unreliable)
        wait_until(lambda: holder._me.beat >= 3)
    assert not folder.exists("lease.json")
