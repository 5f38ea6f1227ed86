"""Groups of processes: a stopped one goes on to the bit, a resized one to floating-point noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import same, train_in_processes

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what the groups leave; their states are in folders in it."""
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    of_three, resized = str(folder / "of_three"), str(folder / "resized")
    elastic = {"workers": [1, 3], "batch_size": 13}
    muon = {"optimizer": {"name": "muon", "learning_rate": 1e-3}, "dropout": 0.0}
    return train_in_processes(
        [
            {"name": "muon alone", "world": 1, **muon},
            {"name": "muon of two", "world": 2, **muon},
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


def test_damage_that_only_one_worker_of_a_group_finds_sends_all_to_the_state_before(
    results: Results, folder: Path, tmp_path: Path
) -> None:
    """Each of three workers verifies every third file."""
    states = tmp_path / "states"
    shutil.copytree(folder / "of_three", states)
    newest = max(states.iterdir())
    files = sorted(json.loads((newest / "manifest.json").read_text())["body"]["files"])
    damaged = newest / files[1]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    again = train_in_processes(
        [{"name": "again", "world": 3, "batch_size": 13, "states": str(states)}], tmp_path
    )["again"]
    assert again["start"] == 8
    assert same(again["weights"], results["untouched"]["weights"])


def test_workers_that_share_muons_work_have_the_losses_of_one(results: Results) -> None:
    pairs = zip(results["muon of two"]["history"], results["muon alone"]["history"], strict=True)
    for (_, metrics), (_, expected) in pairs:
        assert metrics == pytest.approx(expected, rel=2e-3)


def test_resized_group_has_the_losses_of_an_untouched_one(results: Results) -> None:
    parts = [results[name] for name in ("three", "then one", "then two")]
    assert [part["start"] for part in parts] == [0, 4, 7]
    history = [entry for part in parts for entry in part["history"]]
    assert [step for step, _ in history] == [step for step, _ in results["untouched"]["history"]]
    for (_, metrics), (_, expected) in zip(history, results["untouched"]["history"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory):
    """Many micro-batches in half precision, by one worker and by two; and groups with one row to validate."""
    half = {"precision": "bf16", "batch_size": 16, "dropout": 0.0, "steps": 6}
    scarce = {"dropout": 0.0, "validation_rows": 1, "steps": 3, "batch_size": 12}
    return train_in_processes(
        [
            {"name": "one", "world": 1, "gradient_accumulation": 8, **half},
            {"name": "two", "world": 2, "workers": 2, "gradient_accumulation": 4, **half},
            {"name": "one row alone", "world": 1, **scarce},
            {"name": "one row", "world": 3, "workers": 3, **scarce},
            {"name": "one row sharded", "world": 2, "workers": 2, "parallel": {"shard": 2}, **scarce},
        ],
        tmp_path_factory.mktemp("bf16"),
    )


def losses(result, name):
    return [metrics[name] for _, metrics in result["history"] if name in metrics]


def test_micro_batches_in_bf16_add_up_over_workers_as_in_one_process(in_bf16):
    one, two = (losses(in_bf16[name], "classification_loss") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2e-5)
    for name, weight in in_bf16["one"]["weights"].items():
        torch.testing.assert_close(in_bf16["two"]["weights"][name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["one row", "one row sharded"])
def test_workers_without_a_validation_row_measure_what_the_others_do(in_bf16, name):
    alone, group = (losses(in_bf16[which], "validation_loss") for which in ("one row alone", name))
    assert len(group) == len(alone) > 0
    assert group == pytest.approx(alone, rel=1e-3)
