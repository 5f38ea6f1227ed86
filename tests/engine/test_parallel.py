"""A model split over workers trains like a whole one, and its states load under any other layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import tiny_config, tiny_objective, train_in_processes

from headway.config import ParallelConfig
from headway.engine.parallel import clip_gradients

Results = dict[str, dict[str, Any]]
# Of the tiny model's weights four fifths are in matrices that the tensor dimension splits.
HELD = {
    "data 2": 1.0,
    "shard 2": 0.5,
    "tensor 2": 0.6,
    "data 2, shard 2": 0.5,
    "data 2, tensor 2": 0.6,
    "shard 2, tensor 2": 0.3,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data 2": {"world": 2},
    "shard 2": {"world": 2, "parallel": {"shard": 2}},
    "tensor 2": {"world": 2, "parallel": {"tensor": 2}},
    "data 2, shard 2": {"world": 4, "parallel": {"data": 2, "shard": 2}},
    "data 2, tensor 2": {"world": 4, "parallel": {"data": 2, "tensor": 2}},
    "shard 2, tensor 2": {"world": 4, "parallel": {"shard": 2, "tensor": 2}},
}
# Dropout draws by share of the batch, so it is left out where shares differ.
SHARED = {"dropout": 0.0, "optimizer": {"name": "adamw", "learning_rate": 1e-3}, "accumulation": 2}


def phase(name: str, **settings: Any) -> dict[str, Any]:
    workers = settings["world"] if settings["world"] > 1 else 0
    return {"name": name, "workers": workers, **(SHARED | settings)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("layouts")
    phases = [phase("alone", world=1)]
    phases += [phase(name, **layout) for name, layout in LAYOUTS.items()]
    moved = str(folder / "moved")
    for number, name in enumerate(["shard 2, tensor 2", "data 2", "tensor 2", "shard 2"]):
        stop = {"stop_after": 3 * (number + 1)} if number < 3 else {}
        phases.append(phase(f"moved {number}", states=moved, **LAYOUTS[name], **stop))
    return train_in_processes(phases, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_has_the_losses_of_a_single_process(results: Results, layout: str) -> None:
    history, expected = results[layout]["history"], results["alone"]["history"]
    assert [step for step, _ in history] == [step for step, _ in expected]
    for (_, metrics), (_, wanted) in zip(history, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_holds_its_part_of_the_weights(results: Results, layout: str) -> None:
    assert results[layout]["held"] == pytest.approx(HELD[layout], abs=0.05)


def test_state_of_one_layout_goes_on_under_another(results: Results) -> None:
    parts = [results[f"moved {number}"] for number in range(4)]
    assert [part["start"] for part in parts] == [0, 3, 6, 9]
    history = [entry for part in parts for entry in part["history"]]
    for (_, metrics), (_, wanted) in zip(history, results["alone"]["history"], strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4)
    for name, expected in results["alone"]["weights"].items():
        torch.testing.assert_close(parts[3]["weights"][name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("most", [0.1, 1e6])
def test_clipping_is_pytorchs(most: float) -> None:
    ours, theirs = tiny_objective(), tiny_objective()
    for module in (ours, theirs):
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
    norm = clip_gradients(ours, most)
    assert norm == float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), most))
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


@pytest.mark.parametrize(
    ("settings", "workers", "shape"),
    [({}, 4, (4, 1, 1)), ({"shard": 2}, 4, (2, 2, 1)), ({"data": 2, "tensor": 2}, 4, (2, 1, 2))],
)
def test_mesh_has_all_workers(settings: dict[str, int], workers: int, shape: tuple[int, int, int]) -> None:
    assert ParallelConfig.model_validate(settings).mesh_shape(workers) == shape


def test_layout_that_does_not_fit_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 x 2 x 1 = 6"):
        tiny_config(workers=4, parallel={"data": 3, "shard": 2})
    with pytest.raises(ValueError, match="fixed number"):
        tiny_config(workers=[1, 2], parallel={"shard": 2})
    with pytest.raises(ValueError, match=r"need optimizer\.name adamw, not 'muon'"):
        tiny_config(workers=2, parallel={"shard": 2}, optimizer={"name": "muon"})
