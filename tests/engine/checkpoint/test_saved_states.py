"""Saved states by name: which are complete, and which of them are deleted when a new one has been saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from headway.engine.checkpoint.saved_states import SavedStates, saved_steps, step_of
from headway.engine.checkpoint.storage import Folder


def add(states: SavedStates, step: int, metric: float | None = None, attempt: str = "a") -> str:
    """A complete state with one file of five bytes."""
    name = states.name_of(step, attempt)
    states.folder.create(name)
    states.folder.write(f"{name}/part", b"12345")
    total = list(states.folder.checksum(f"{name}/part"))
    states.complete_with(name, {"step": step, "metric": metric, "files": {"part": total}, "workers": []})
    return name


@pytest.fixture
def states(tmp_path: Path) -> SavedStates:
    return SavedStates(Folder(tmp_path))


def steps(states: SavedStates) -> list[int]:
    return saved_steps(states.folder)


def test_a_states_name_says_after_how_many_steps_and_sorts_by_them(states):
    assert states.name_of(12, "ab-1") == "step-000000012-ab-1"
    assert step_of("step-000000012-ab-1") == 12
    assert states.name_of(9, "z") < states.name_of(10, "a")


def test_complete_is_a_state_that_has_its_manifest(states, tmp_path):
    add(states, 10)
    add(states, 9)
    (tmp_path / "step-000000011-a").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").touch()
    assert states.complete() == ["step-000000009-a", "step-000000010-a"]
    assert steps(states) == [9, 10]


def test_a_manifest_is_sealed_by_the_checksum_of_its_body(states, tmp_path):
    name = add(states, 3, metric=0.5)
    path = tmp_path / name / "manifest.json"
    sealed: dict[str, Any] = json.loads(path.read_text())
    assert sealed["checksum"] == xxhash.xxh3_128_hexdigest(json.dumps(sealed["body"]).encode())
    assert states.manifest(name) == sealed["body"]
    assert (sealed["body"]["step"], sealed["body"]["metric"]) == (3, 0.5)
    sealed["body"]["step"] = 4
    path.write_text(json.dumps(sealed))
    with pytest.raises(ValueError, match=r"manifest\.json is not what was written"):
        states.manifest(name)


def test_a_state_loses_its_manifest_first(states, monkeypatch):
    """Whoever looks meanwhile must not take what is left for a state."""
    name, removed = add(states, 3), list[str]()
    monkeypatch.setattr(states.folder, "remove", removed.append)
    states.remove(name)
    assert removed == [f"{name}/manifest.json", name]


def test_drafts_are_what_has_no_manifest(states, tmp_path):
    add(states, 1)
    (tmp_path / "step-000000002-a").mkdir()
    (tmp_path / "other").mkdir()
    states.remove_drafts()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "step-000000001-a"]


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_stay(states, keep):
    sound = {add(states, step) for step in range(1, 5)}
    states.prune(keep, 0, sound, set())
    assert steps(states) == [1, 2, 3, 4][-keep:]


def test_the_best_stay_besides_and_those_without_a_metric_are_none_of_them(states):
    metrics = {1: 0.3, 2: None, 3: 0.1, 4: 0.2, 5: 0.4, 6: 0.5}
    sound = {add(states, step, metric) for step, metric in metrics.items()}
    states.prune(1, 2, sound, set())
    assert steps(states) == [3, 4, 6]


def test_damaged_states_go_and_are_none_of_the_best(states):
    names = {step: add(states, step, metric) for step, metric in {1: 0.3, 2: 0.1, 3: 0.4}.items()}
    states.prune(1, 1, {names[1], names[3]}, {names[2]})
    assert steps(states) == [1, 3]


def test_what_nobody_has_checked_goes_if_it_is_older_than_the_newest_and_stays_if_it_is_newer(states):
    names = {step: add(states, step) for step in (1, 2, 3, 4)}
    states.prune(1, 0, {names[2]}, set())
    assert steps(states) == [2, 3, 4]


def test_a_damaged_state_that_is_newer_goes_too(states):
    names = {step: add(states, step) for step in (2, 3, 4)}
    states.prune(1, 0, {names[2], names[3]}, {names[4]})
    assert steps(states) == [3]


@pytest.mark.parametrize("length", [4, 6, None])
def test_a_state_whose_file_has_another_length_is_not_counted_among_the_newest(states, tmp_path, length):
    names = {step: add(states, step, metric=step / 10) for step in (1, 2, 3)}
    file = tmp_path / names[3] / "part"
    file.unlink() if length is None else file.write_bytes(bytes(length))
    states.prune(1, 1, set(names.values()), set())
    assert steps(states) == [1, 2]


def test_a_state_whose_file_was_cut_is_none_of_the_best(states, tmp_path):
    names = {step: add(states, step, metric=metric) for step, metric in {1: 0.1, 2: 0.2, 3: 0.3}.items()}
    (tmp_path / names[1] / "part").write_bytes(b"1")
    states.prune(1, 1, set(names.values()), set())
    assert steps(states) == [2, 3]


def test_a_state_whose_manifest_cannot_be_read_is_not_counted_among_the_newest(states, tmp_path):
    names = {step: add(states, step, metric=step / 10) for step in (1, 2, 3)}
    (tmp_path / names[3] / "manifest.json").write_text("{")
    states.prune(1, 0, set(names.values()), set())
    assert steps(states) == [2]


def test_without_a_sound_state_nothing_is_deleted(states):
    names = [add(states, step) for step in (1, 2)]
    states.prune(1, 0, set(), set(names))
    assert steps(states) == [1, 2]
