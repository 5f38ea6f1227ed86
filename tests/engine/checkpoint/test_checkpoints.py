"""States: exact, whole, verified, kept where they should be, and written off the training thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_states import checkpoints_in, folder_of, model_and_optimizer, restored_from, save_steps
from tiny_training import same, train, weights
from torch.distributed.checkpoint.staging import StagingOptions

from headway.engine.checkpoint.checkpoints import CheckpointError, Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker
from waiting import wait_until

OPTIMIZERS = ["adamw", "lamb", "lion", "adafactor", "muon", "schedule_free_adamw"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop_after", [4, 7])
def test_resumed_run_is_bit_identical(tmp_path: Path, name: str, stop_after: int) -> None:
    settings: dict[str, Any] = {"optimizer": {"name": name, "learning_rate": 1e-3}}
    untouched, history = train(None, **settings)
    _, before = train(tmp_path, stop_after=stop_after, **settings)
    resumed, after = train(tmp_path, **settings)
    assert resumed.start_step == stop_after
    assert same(weights(resumed), weights(untouched))
    assert [entry for entry in before if entry[0] <= stop_after] + after == history


def test_a_run_that_continues_with_fewer_workers_has_the_same_dropout(tmp_path: Path) -> None:
    untouched, _ = train(None, workers=4)
    train(tmp_path, workers=4, stop_after=4)
    resumed, _ = train(tmp_path, workers=1)
    assert resumed.start_step == 4
    assert same(weights(resumed), weights(untouched))


def test_losses_do_not_depend_on_the_number_of_workers() -> None:
    _, alone = train(None, dropout=0.0, workers=1)
    _, four = train(None, dropout=0.0, workers=4, gradient_accumulation=2)
    assert [step for step, _ in four] == [step for step, _ in alone]
    for (_, ours), (_, theirs) in zip(four, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_state_does_not_say_how_steps_are_computed(tmp_path: Path) -> None:
    """The optimizer of a split model is not fused; that of a whole one which goes on from there is."""
    model, optimizer = model_and_optimizer(1.0)
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, model, optimizer)
    checkpoints.wait()
    model, optimizer = model_and_optimizer(0.0)
    checkpoints.restore(model, optimizer)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def test_run_without_a_saved_state_starts_at_the_beginning(tmp_path: Path) -> None:
    assert restored_from(tmp_path / "none").step == 0


def test_state_without_its_manifest_is_never_seen(tmp_path: Path) -> None:
    save_steps(tmp_path, {1: None, 2: None})
    (folder_of(tmp_path, 2) / "manifest.json").unlink()
    restored = restored_from(tmp_path)
    assert (restored.step, list(restored.notes)) == (1, [])
    assert not list(tmp_path.glob("step-000000002-*")), "what is half-written is removed"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("__0_0.distcp", "flip"),
        ("__0_0.distcp", "cut"),
        ("__0_0.distcp", "remove"),
        (".metadata", "flip"),
        (".metadata", "remove"),
        ("manifest.json", "flip"),
        ("manifest.json", "cut"),
    ],
)
def test_damaged_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, file: str, damage: str
) -> None:
    save_steps(tmp_path, {1: None, 2: None})
    path = folder_of(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:middle])
    else:
        path.unlink()
    model, optimizer = model_and_optimizer(0.0)
    restored = checkpoints_in(tmp_path).restore(model, optimizer)
    expected, _ = model_and_optimizer(1)
    assert restored.step == 1
    assert same(model.state_dict(), expected.state_dict())
    assert len(restored.notes) == 1
    assert "step 2 is damaged" in restored.notes[0]


def test_a_run_all_of_whose_states_are_damaged_starts_at_the_beginning_and_says_so(tmp_path: Path) -> None:
    save_steps(tmp_path, {1: None, 2: None})
    for step in (1, 2):
        cut(folder_of(tmp_path, step) / "__0_0.distcp")
    restored = restored_from(tmp_path)
    assert restored.step == 0
    assert [note.partition(" is")[0] for note in restored.notes] == [
        "the state after step 2",
        "the state after step 1",
    ]


def test_a_parameter_that_never_had_a_gradient_has_nothing_to_restore(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.ModuleDict, torch.optim.Optimizer]:
        model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("used", "unused")})
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = parts()
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, model, optimizer)
    checkpoints.wait()
    other, other_optimizer = parts()
    assert checkpoints_in(tmp_path).restore(other, other_optimizer).step == 1
    assert same(other.state_dict(), model.state_dict())


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, dict.fromkeys([1, 2, 3, 4, 5]), keep=3)
    assert saved_steps(checkpoints.folder) == [3, 4, 5]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_state_that_comes_too_soon_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("headway.engine.checkpoint.checkpoints.time.monotonic", lambda: now)
    checkpoints = checkpoints_in(tmp_path, keep=9, min_seconds=60.0)
    for seconds in (59, 61, 100, 120, 121, 200):
        now = 1000.0 + seconds
        checkpoints.save(seconds, *model_and_optimizer(1.0))
        assert checkpoints.wait()
    assert saved_steps(Folder(tmp_path)) == [61, 121, 200]


def test_best_states_are_kept_besides(tmp_path: Path) -> None:
    losses = {1: None, 2: 0.5, 3: 0.9, 4: 0.4, 5: 0.8, 6: 0.7}
    save_steps(tmp_path, losses, keep=1, keep_best=2)
    assert saved_steps(Folder(tmp_path)) == [2, 4, 6]


def test_what_the_metric_was_comes_back(tmp_path: Path) -> None:
    save_steps(tmp_path, {3: 0.25})
    assert restored_from(tmp_path).metric == 0.25


def test_what_a_worker_keeps_to_itself_comes_back(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, *model_and_optimizer(1.0), worker_state={"seen": 3})
    assert checkpoints.wait()
    assert restored_from(tmp_path).worker_states == [{"seen": 3}]


def test_two_states_are_kept_and_none_for_being_best_unless_it_is_set(tmp_path: Path) -> None:
    save_steps(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    assert saved_steps(Folder(tmp_path)) == [2, 3]


def test_the_state_that_a_run_goes_on_from_is_one_of_the_newest(tmp_path: Path) -> None:
    save_steps(tmp_path, {1: None, 2: None})
    checkpoints = checkpoints_in(tmp_path, keep=2)
    assert checkpoints.restore(*model_and_optimizer(0.0)).step == 2
    checkpoints.save(3, *model_and_optimizer(3.0))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [2, 3]


@pytest.mark.parametrize(("device", "is_gpu"), [("cpu", False), ("cuda", True)])
def test_a_copy_is_made_by_way_of_pinned_memory_from_a_gpu_only(
    device: str, is_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StagingOptions] = []
    monkeypatch.setattr("headway.engine.checkpoint.checkpoints.DefaultStager", made.append)
    Checkpoints(Folder(tmp_path), Worker(device=torch.device(device)))
    assert made == [
        StagingOptions(
            use_pinned_memory=is_gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=is_gpu,
        )
    ]


class SlowFolder(Folder):
    """Does not finish a checkpoint before it is told to."""

    def __init__(self, address: Path) -> None:
        super().__init__(address)
        self.may_write = threading.Event()
        self.writing = 0

    def write(self, name: str, content: bytes) -> None:
        self.writing += 1
        assert self.may_write.wait(30)
        super().write(name, content)


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path) -> None:
    folder = SlowFolder(tmp_path)
    checkpoints = Checkpoints(folder, Worker(device=torch.device("cpu")))
    model, optimizer = model_and_optimizer(1.0)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoints.save(1, model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    assert saved_steps(checkpoints.folder) == [], "it is not complete, and save() came back all the same"
    folder.may_write.set()
    checkpoints.wait()
    checkpoints.restore(model, optimizer)
    assert same(model.state_dict(), saved)


def test_at_most_one_state_is_in_flight(tmp_path: Path) -> None:
    folder = SlowFolder(tmp_path)
    checkpoints = Checkpoints(folder, Worker(device=torch.device("cpu")))
    checkpoints.save(1, *model_and_optimizer(1.0))
    second = threading.Thread(target=checkpoints.save, args=(2, *model_and_optimizer(2.0)))
    second.start()
    wait_until(lambda: folder.writing >= 1, poll=0.01)
    second.join(0.3)
    assert second.is_alive(), "the second waits for the first"
    folder.may_write.set()
    second.join(30)
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [1, 2]


def test_each_of_several_workers_copies_only_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.new_group", lambda backend: None)  # they are never asked to meet
    copied: list[dict[str, Any]] = []
    for rank in range(2):
        checkpoints = Checkpoints(Folder(tmp_path), Worker(rank, 2, torch.device("cpu")))
        monkeypatch.setattr(checkpoints._stager, "stage", copied.append)
        monkeypatch.setattr(checkpoints, "_write", lambda *_: None)
        checkpoints.save(1, *model_and_optimizer(1.0))
    first, second = (list(state["model"]) for state in copied)
    model, _ = model_and_optimizer(1.0)
    assert sorted(first + second) == sorted(dict(model.named_parameters()))


class UnreliableFolder(Folder):
    """Writes fail while there are failures left; each attempt to write a state uses up one."""

    def __init__(self, address: Path, failures: int) -> None:
        super().__init__(address)
        self.failures = failures

    def write(self, name: str, content: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the storage timed out")
        super().write(name, content)


def unreliable(address: Path, failures: int) -> tuple[Checkpoints, list[str]]:
    worker, warnings = Worker(device=torch.device("cpu")), list[str]()
    checkpoints = Checkpoints(UnreliableFolder(address, failures), worker, pauses=[0.0, 0.0])
    checkpoints.warn = warnings.append
    return checkpoints, warnings


def test_a_write_that_fails_is_tried_again(tmp_path: Path) -> None:
    checkpoints, warnings = unreliable(tmp_path, failures=2)
    checkpoints.save(1, *model_and_optimizer(1.0))
    assert checkpoints.wait()
    assert warnings == []
    assert saved_steps(checkpoints.folder) == [1]
    assert len(list(tmp_path.iterdir())) == 1, "nothing is left of the attempts that failed"
    assert restored_from(tmp_path).step == 1


def test_a_state_that_cannot_be_saved_is_told_and_training_goes_on(tmp_path: Path) -> None:
    checkpoints, warnings = unreliable(tmp_path, failures=6)
    for step in (1, 2, 3):
        checkpoints.save(step, *model_and_optimizer(step))
    assert checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [3]
    assert [warning.partition(";")[0] for warning in warnings] == [
        f"the state after step {step} could not be saved: the storage timed out" for step in (1, 2)
    ]


def test_each_attempt_comes_after_its_pause_and_has_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, names, pauses = checkpoints_in(tmp_path, pauses=[1.0, 4.0]), list[str](), list[float]()
    clock = SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr("headway.engine.checkpoint.checkpoints.time", clock)

    def fail(name: str, *_: Any) -> str:
        names.append(name)
        return "the storage timed out"

    monkeypatch.setattr(checkpoints, "_attempt_to_write", fail)
    checkpoints._write(3, {}, {}, None)
    assert pauses == [1.0, 4.0]
    assert names == [f"step-000000003-{checkpoints._attempt}{end}" for end in ("", "-1", "-2")]


def test_only_failures_in_a_row_count(tmp_path: Path) -> None:
    folder = UnreliableFolder(tmp_path, 0)
    checkpoints = Checkpoints(folder, Worker(device=torch.device("cpu")), pauses=[])
    assert checkpoints.wait(), "nothing is in flight"
    for step, failures in enumerate([1, 1, 0, 1, 1, 0], start=1):
        folder.failures = failures
        checkpoints.save(step, *model_and_optimizer(step))
        assert checkpoints.wait() == (not failures)


def test_several_states_in_a_row_that_cannot_be_saved_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file where the folder should be")
    checkpoints = Checkpoints(Folder(tmp_path / "states"), Worker(device=torch.device("cpu")), pauses=[])
    for step in (1, 2, 3):
        checkpoints.save(step, *model_and_optimizer(step))
    with pytest.raises(CheckpointError, match=r"step 3 could not be saved: .*, nor could the 2 before"):
        checkpoints.wait()


def test_a_run_that_is_asked_to_stop_does_not_say_that_it_saved_what_it_could_not(tmp_path: Path) -> None:
    checkpoints, _ = unreliable(tmp_path, failures=100)
    with pytest.raises(CheckpointError, match="stopped after step 3, whose state could not be saved"):
        train(checkpoints, stop_after=3)


class DyingFolder(SlowFolder):
    """That of a worker that is gone before its state is complete."""

    def write(self, name: str, content: bytes) -> None:
        super().write(name, content)
        if not name.endswith((".distcp", ".metadata")):
            raise OSError("the machine is gone")


def test_what_an_earlier_start_still_writes_does_not_mix_with_a_new_state(tmp_path: Path) -> None:
    """Both save the same step, and the earlier one's files come last."""
    dying = DyingFolder(tmp_path)
    earlier = Checkpoints(dying, Worker(device=torch.device("cpu")), pauses=[])
    earlier.save(3, *model_and_optimizer(1.0))
    wait_until(lambda: dying.writing, poll=0.01)
    later = checkpoints_in(tmp_path)
    later.save(3, *model_and_optimizer(2.0))
    assert later.wait()
    dying.may_write.set()
    assert not earlier.wait()
    model, optimizer = model_and_optimizer(0.0)
    restored = checkpoints_in(tmp_path).restore(model, optimizer)
    assert (restored.step, list(restored.notes)) == (3, [])
    assert same(model.state_dict(), model_and_optimizer(2.0)[0].state_dict())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_state_is_not_counted_among_the_newest(tmp_path: Path) -> None:
    save_steps(tmp_path, {2: None, 4: None})
    content = bytearray((folder_of(tmp_path, 4) / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (folder_of(tmp_path, 4) / "__0_0.distcp").write_bytes(content)
    checkpoints = checkpoints_in(tmp_path, keep=1)
    assert checkpoints.restore(*model_and_optimizer(0.0)).step == 2
    checkpoints.save(3, *model_and_optimizer(3.0))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [3]
    assert restored_from(tmp_path).step == 3


def test_the_only_sound_state_is_not_deleted_for_one_that_was_cut_short(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, {1: None, 2: None}, keep=2)
    cut(folder_of(tmp_path, 2) / "__0_0.distcp")
    checkpoints.save(3, *model_and_optimizer(3.0))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [1, 3]


def test_a_state_that_could_not_be_read_for_a_moment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, {2: None, 4: None})
    checkpoints = checkpoints_in(tmp_path, keep=1)
    checksum = checkpoints.folder.checksum

    def timed_out(name: str) -> tuple[int, str]:
        if "000000004" in name:
            raise OSError("the storage timed out")
        return checksum(name)

    monkeypatch.setattr(checkpoints.folder, "checksum", timed_out)
    restored = checkpoints.restore(*model_and_optimizer(0.0))
    assert list(restored.notes) == [
        "the state after step 4 cannot be read (the storage timed out); using the one before"
    ]
    checkpoints.save(3, *model_and_optimizer(3.0))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [3, 4]
    checkpoints.save(5, *model_and_optimizer(5.0))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [5]
