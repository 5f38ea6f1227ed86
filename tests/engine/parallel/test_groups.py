"""Groups of processes: a stopped one goes on to the bit, a resized one to floating-point noise."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_training import same, train_in_processes

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("groups")
    of_three, resized = str(folder / "of_three"), str(folder / "resized")
    elastic = {"workers": [1, 3], "batch_size": 13}
    return train_in_processes(
        [
            {"name": "untouched", "world": 3, "batch_size": 13},
            {"name": "stopped", "world": 3, "batch_size": 13, "states": of_three, "stop_after": 7},
            {"name": "resumed", "world": 3, "batch_size": 13, "states": of_three},
            {"name": "three", "world": 3, "states": resized, "stop_after": 4, **elastic},
            {"name": "then one", "world": 1, "states": resized, "stop_after": 7, **elastic},
            {"name": "then two", "world": 2, "states": resized, **elastic},
        ],
        folder,
    )


def test_stopped_group_resumes_bit_identical(results: Results) -> None:
    assert results["resumed"]["start"] == 7
    assert same(results["resumed"]["weights"], results["untouched"]["weights"])
    assert results["stopped"]["history"] + results["resumed"]["history"] == results["untouched"]["history"]


def test_resized_group_has_the_losses_of_an_untouched_one(results: Results) -> None:
    parts = [results[name] for name in ("three", "then one", "then two")]
    assert [part["start"] for part in parts] == [0, 4, 7]
    history = [entry for part in parts for entry in part["history"]]
    assert [step for step, _ in history] == [step for step, _ in results["untouched"]["history"]]
    for (_, metrics), (_, expected) in zip(history, results["untouched"]["history"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-4)
