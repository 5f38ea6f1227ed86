"""Whoever can write a state's files, checksums and all, still runs nothing on those who read it."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_states import checkpoints_in, folder_of, model_and_optimizer, restored_from, save_steps
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from headway.engine.checkpoint.checkpoints import CheckpointError
from headway.engine.checkpoint.saved_states import SavedStates
from headway.engine.checkpoint.storage import Folder
from headway.engine.checkpoint.unpickling import read_metadata


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def seal(state: Path) -> None:
    """Write a manifest that has the right checksums of what the files hold now."""
    states = SavedStates(Folder(state.parent))
    body = states.manifest(state.name)
    body["files"] = {name: Folder(state).checksum(name) for name in body["files"]}
    states.complete_with(state.name, json.loads(json.dumps(body)))


def test_metadata_that_would_run_something_is_passed_over(tmp_path: Path) -> None:
    states, mark = tmp_path / "states", tmp_path / "run"
    save_steps(states, {1: None, 2: None})
    state = folder_of(states, 2)
    (state / ".metadata").write_bytes(pickle.dumps(Malicious(mark)))
    seal(state)
    restored = restored_from(states)
    assert restored.step == 1
    [note] = restored.notes
    assert "step 2 is damaged (.metadata: it names" in note
    assert "which no state is made of" in note
    assert not mark.exists()


def test_an_entry_that_would_run_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, mark = tmp_path / "states", tmp_path / "run"
    transform = DefaultSavePlanner.transform_object

    def transform_maliciously(self: Any, item: Any, entry: Any) -> Any:
        if not item.index.fqn.endswith("eps"):
            return transform(self, item, entry)
        content = io.BytesIO()
        torch.save(Malicious(mark), content)
        return content

    with monkeypatch.context() as patch:
        patch.setattr(DefaultSavePlanner, "transform_object", transform_maliciously)
        save_steps(states, {1: None})
    with pytest.raises(CheckpointError, match="step 1 cannot be loaded: Weights only load failed"):
        checkpoints_in(states).restore(*model_and_optimizer(0.0))
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(print)])
def test_what_is_no_metadata_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^\.metadata: "):
        read_metadata(io.BytesIO(content))
