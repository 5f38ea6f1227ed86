"""States of two workers: both learn of what went wrong on either, and the state holds what both keep.

The workers are threads here, and what they exchange goes through a meeting of two instead of gloo.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_states import folder_of, model_and_optimizer, save_steps
from torch.distributed.checkpoint.api import CheckpointException

from headway.engine.checkpoint import checkpoints as module
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker

CPU = torch.device("cpu")
Both = Callable[[Callable[[Checkpoints], Any]], list[Any]]


class Meeting:
    """Gathers a value of each of two threads; the first of them is rank 0."""

    def __init__(self) -> None:
        self.rank = threading.local()
        self._barrier = threading.Barrier(2, timeout=30)
        self._values: list[Any] = [None, None]

    def gather(self, values: list[Any], value: Any, group: Any) -> None:
        assert group is self
        self._values[self.rank.number] = value
        self._barrier.wait()
        values[:] = self._values
        self._barrier.wait()


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    meeting = Meeting()
    monkeypatch.setattr(module.dist, "new_group", lambda backend: {"gloo": meeting}[backend])
    monkeypatch.setattr(module.dist, "all_gather_object", meeting.gather)
    return meeting


@pytest.fixture
def both(meeting: Meeting, tmp_path: Path) -> Both:
    """A function that has each of two workers do something with its `Checkpoints`; what each got from it."""

    def run(work: Callable[[Checkpoints], Any]) -> list[Any]:
        def on(rank: int) -> Any:
            meeting.rank.number = rank
            return work(Checkpoints(Folder(tmp_path), Worker(rank, 2, CPU), pauses=[0.0]))

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(on, range(2)))

    return run


def write(folder: Folder, writer: Any, name: str) -> None:
    """What a worker writes of a state."""
    folder.create(writer.path)
    folder.write(f"{writer.path}/{name}", name.encode())
    writer.checksums[f"{writer.path}/{name}"] = folder.checksum(f"{writer.path}/{name}")


def test_damage_that_one_worker_finds_is_known_to_both(both: Both, tmp_path: Path) -> None:
    """Each checks its share of the files: the second has the weights here."""
    save_steps(tmp_path, {1: None, 2: None})
    path = folder_of(tmp_path, 2) / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    for name, notes in both(lambda checkpoints: checkpoints._newest_sound()):
        assert name == folder_of(tmp_path, 1).name
        assert notes == [
            "the state after step 2 is damaged (__0_0.distcp is not what was written); using the one before"
        ]


def test_a_state_holds_the_files_and_the_words_of_both_workers(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meeting: Meeting
) -> None:
    def save(state: Any, storage_writer: Any, process_group: Any, no_dist: bool) -> None:
        assert (process_group, no_dist) == (meeting, False)
        write(Folder(tmp_path), storage_writer, f"part-{meeting.rank.number}")

    monkeypatch.setattr(module.dcp, "save", save)
    said = both(lambda mine: mine._write(7, {}, {"rank": mine._worker.rank}, 0.5))
    assert said == [None, None]
    states = Checkpoints(Folder(tmp_path), Worker(device=CPU))._states
    [name] = states.complete()
    manifest = states.manifest(name)
    assert sorted(manifest["files"]) == ["part-0", "part-1"]
    assert manifest["workers"] == [{"rank": 0}, {"rank": 1}]
    assert (manifest["step"], manifest["metric"]) == (7, 0.5)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_could_not_be_written_is_known_to_both_and_the_state_tried_again(
    both: Both, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meeting: Meeting, failing: int
) -> None:
    tries: list[int] = []

    def save(state: Any, storage_writer: Any, **_: Any) -> None:
        rank = meeting.rank.number
        tries.append(rank)
        if rank == failing and tries.count(rank) <= failures:
            raise OSError("the storage timed out\nand more")
        write(Folder(tmp_path), storage_writer, f"part-{rank}")

    monkeypatch.setattr(module.dcp, "save", save)
    failures = 1
    assert both(lambda mine: mine._write(7, {}, {}, None)) == [None, None]
    assert sorted(tries) == [0, 0, 1, 1] and saved_steps(Folder(tmp_path)) == [7]
    assert len(list(tmp_path.iterdir())) == 1, "the first worker has removed the draft"
    failures = 100
    told = "the state after step 8 could not be saved: the storage timed out"
    assert both(lambda mine: mine._write(8, {}, {}, None)) == [told, told]
    assert saved_steps(Folder(tmp_path)) == [7]


def test_workers_of_one_start_name_their_states_alike_and_those_of_another_differently(both: Both) -> None:
    (first, second), (third, _) = (both(lambda mine: mine._attempt) for _ in range(2))
    assert first == second != third


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError("\nno space is left\non the disk"), "no space is left"), (TimeoutError(), "TimeoutError")],
)
def test_a_manifest_that_could_not_be_written_is_known_to_both(
    both: Both, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    monkeypatch.setattr(module.dcp, "save", lambda *_, **__: None)
    monkeypatch.setattr(module.SavedStates, "complete_with", raising(error))
    told = f"the state after step 3 could not be saved: {reason}"
    assert both(lambda mine: mine._write(3, {}, {}, None)) == [told, told]


def test_of_what_torch_gathers_from_all_workers_the_first_failure_is_told(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: dict[int, Any] = {1: (OSError("the disk is full"), traceback.StackSummary())}
    monkeypatch.setattr(module.dcp, "save", raising(CheckpointException("write", failures)))
    told = "the state after step 3 could not be saved: the disk is full"
    assert both(lambda mine: mine._write(3, {}, {}, None)) == [told, told]


def test_a_draft_that_cannot_be_removed_either_ends_nothing(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.dcp, "save", raising(OSError("the storage is gone")))
    monkeypatch.setattr(module.SavedStates, "remove", raising(OSError("the storage is gone")))
    told = "the state after step 3 could not be saved: the storage is gone"
    assert both(lambda mine: mine._write(3, {}, {}, None)) == [told, told]


def test_both_workers_load_together(
    both: Both, meeting: Meeting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, {1: None})
    asked: list[Any] = []
    monkeypatch.setattr(
        module.dcp, "load", lambda _, process_group, no_dist, **rest: asked.append((process_group, no_dist))
    )
    both(lambda mine: mine.restore(*model_and_optimizer(0.0)))
    assert asked == [(meeting, False)] * 2


def test_the_first_worker_alone_completes_a_state_and_only_if_both_wrote_their_parts(
    both: Both, monkeypatch: pytest.MonkeyPatch, meeting: Meeting
) -> None:
    completed: list[int] = []
    monkeypatch.setattr(module.SavedStates, "complete_with", lambda *_: completed.append(meeting.rank.number))
    monkeypatch.setattr(module.dcp, "save", lambda *_, **__: None)
    both(lambda mine: mine._write(3, {}, {}, None))
    assert completed == [0]
    monkeypatch.setattr(module.dcp, "save", raising(OSError("the storage is gone")))
    both(lambda mine: mine._write(4, {}, {}, None))
    assert completed == [0]


def test_the_first_worker_alone_tidies_up(both: Both, tmp_path: Path) -> None:
    save_steps(tmp_path, {1: None, 2: None, 3: None}, keep=9)
    names = [folder_of(tmp_path, step).name for step in (1, 2, 3)]
    removed: list[int] = []

    def tidy(mine: Checkpoints) -> None:
        mine._states.remove = lambda name: removed.append(mine._worker.rank)  # type: ignore[method-assign]
        mine._sound = set(names)
        mine._prune_after(names[2])

    both(tidy)
    assert removed == [0]
