"""Where a training run keeps its states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.runs.paths import RunPaths


def place_of(folder: Path, token: str, checkpoint_folder: str | None) -> RunPaths:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token)
    config = TrainingConfig.model_validate({"checkpoint_folder": checkpoint_folder})
    context: Any = SimpleNamespace(folder=folder, experiment="bbc", step="pretrain")
    return RunPaths.of(config, context)


def test_states_lie_with_the_run_where_nothing_else_is_said(tmp_path: Path) -> None:
    assert place_of(tmp_path, "abc", None).states == str(tmp_path / "state")


def test_states_of_two_runs_never_meet_in_a_shared_folder(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    one = place_of(tmp_path / "run", "one", shared)
    other = place_of(tmp_path / "run", "other", shared)
    assert one.states == f"{shared}/bbc-pretrain-one"
    assert other.states == f"{shared}/bbc-pretrain-other"


@pytest.mark.parametrize("address", ["nonsense://bucket/states", "/proc/states"])
def test_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=f"^checkpoint_folder: '{address}' cannot be used: .+$") as error:
        place_of(tmp_path, "abc", address)
    assert len(str(error.value).splitlines()) == 1
