"""A model split over workers trains like a whole one, and its states load under any other layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import same, tiny_config, tiny_objective, train_in_processes

from headway.config.training import ParallelConfig

Results = dict[str, dict[str, Any]]
# Of the tiny model's weights four fifths are in matrices that the tensor dimension splits. The first stage
# of two has the embeddings and half the layers.
HELD = {
    "data 2": 1.0,
    "shard 2": 0.5,
    "tensor 2": 0.6,
    "data 2, shard 2": 0.5,
    "data 2, tensor 2": 0.6,
    "shard 2, tensor 2": 0.3,
    "pipeline 2": 0.55,
    "pipeline 2, data 2": 0.55,
    "pipeline 2, shard 2": 0.27,
    "pipeline 2, tensor 2": 0.35,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data 2": {"world": 2},
    "shard 2": {"world": 2, "parallel": {"shard": 2}},
    "tensor 2": {"world": 2, "parallel": {"tensor": 2}},
    "data 2, shard 2": {"world": 4, "parallel": {"data": 2, "shard": 2}},
    "data 2, tensor 2": {"world": 4, "parallel": {"data": 2, "tensor": 2}},
    "shard 2, tensor 2": {"world": 4, "parallel": {"shard": 2, "tensor": 2}},
    "pipeline 2": {"world": 2, "parallel": {"pipeline": 2}},
    "pipeline 2, data 2": {"world": 4, "parallel": {"pipeline": 2, "data": 2}},
    "pipeline 2, shard 2": {"world": 4, "parallel": {"pipeline": 2, "shard": 2}},
    "pipeline 2, tensor 2": {"world": 4, "parallel": {"pipeline": 2, "tensor": 2}},
}
# Dropout depends on the part of the batch, so it is left out if parts differ.
SHARED = {"dropout": 0.0, "optimizer": {"name": "adamw", "learning_rate": 1e-3}, "gradient_accumulation": 3}
MOVES = ["shard 2, tensor 2", "pipeline 2", "data 2", "pipeline 2, data 2", "tensor 2", "shard 2"]


def phase(name: str, **settings: Any) -> dict[str, Any]:
    workers = settings["world"] if settings["world"] > 1 else 0
    return {"name": name, "workers": workers, **(SHARED | settings)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("layouts")
    phases = [phase("alone", world=1, scored=True)]
    phases += [phase(name, scored=True, **layout) for name, layout in LAYOUTS.items()]
    for number, name in enumerate(MOVES):
        stop = {"stop_after": 2 * (number + 1)} if name != MOVES[-1] else {}
        phases.append(phase(f"moved {number}", states=str(folder / "moved"), **LAYOUTS[name], **stop))
    staged = {"pretraining": True, **LAYOUTS["pipeline 2"]}
    phases += [
        phase("pretraining alone", world=1, pretraining=True),
        phase("pretraining in stages", **staged),
        phase("stopped", states=str(folder / "stopped"), stop_after=5, **staged),
        phase("resumed", states=str(folder / "stopped"), **staged),
    ]
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
    parts = [results[f"moved {number}"] for number in range(len(MOVES))]
    assert [part["start"] for part in parts] == [0, 2, 4, 6, 8, 10]
    history = [entry for part in parts for entry in part["history"]]
    for (_, metrics), (_, wanted) in zip(history, results["alone"]["history"], strict=True):
        assert metrics == pytest.approx({name: wanted[name] for name in metrics}, rel=1e-4)
    for name, expected in results["alone"]["weights"].items():
        torch.testing.assert_close(parts[-1]["weights"][name], expected, rtol=1e-3, atol=1e-4)


def test_stages_at_both_ends_train_the_weights_they_share_as_one(results: Results) -> None:
    alone, staged = results["pretraining alone"], results["pretraining in stages"]
    for (_, metrics), (_, wanted) in zip(staged["history"], alone["history"], strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4)
    assert staged["weights"].keys() == alone["weights"].keys()
    for name, expected in alone["weights"].items():
        torch.testing.assert_close(staged["weights"][name], expected, rtol=1e-3, atol=1e-4)


def test_stopped_pipeline_resumes_bit_identical(results: Results) -> None:
    assert results["resumed"]["start"] == 5
    assert same(results["resumed"]["weights"], results["pretraining in stages"]["weights"])


PARTS: dict[str, dict[str, Any]] = {"frozen": {"frozen_layers": 1}, "lora": {"lora": True}}
PARTS_SPLIT = [
    *(("frozen", layout) for layout in ("shard 2", "tensor 2", "pipeline 2")),
    *(("lora", layout) for layout in ("shard 2", "pipeline 2")),
]


@pytest.fixture(scope="module")
def trained_in_part(tmp_path_factory: pytest.TempPathFactory) -> Results:
    phases = [phase(f"{name} alone", world=1, **part) for name, part in PARTS.items()]
    phases += [phase(f"{name} {layout}", **LAYOUTS[layout], **PARTS[name]) for name, layout in PARTS_SPLIT]
    return train_in_processes(phases, tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(("part", "layout"), PARTS_SPLIT)
def test_a_split_model_of_which_a_part_is_trained(trained_in_part: Results, part: str, layout: str) -> None:
    alone, split = trained_in_part[f"{part} alone"], trained_in_part[f"{part} {layout}"]
    for (_, metrics), (_, wanted) in zip(split["history"], alone["history"], strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-4)
    assert split["weights"].keys() == alone["weights"].keys()
    start = tiny_objective().state_dict()
    for name, expected in alone["weights"].items():
        torch.testing.assert_close(split["weights"][name], expected, rtol=1e-3, atol=1e-4)
        if "embeddings" in name:
            assert torch.equal(split["weights"][name], start[name])


@pytest.mark.parametrize(
    ("settings", "workers", "shape"),
    [
        ({}, 4, (1, 4, 1, 1)),
        ({"shard": 2}, 4, (1, 2, 2, 1)),
        ({"data": 2, "tensor": 2}, 4, (1, 2, 1, 2)),
        ({"pipeline": 2}, 4, (2, 2, 1, 1)),
    ],
)
def test_mesh_has_all_workers(settings: dict[str, int], workers: int, shape: tuple[int, ...]) -> None:
    assert ParallelConfig.model_validate(settings).mesh_shape(workers) == shape


def test_layout_that_does_not_fit_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="1 x 3 x 2 x 1 = 6"):
        tiny_config(workers=4, parallel={"data": 3, "shard": 2})
    with pytest.raises(ValueError, match="fixed number"):
        tiny_config(workers=[1, 2], parallel={"shard": 2})
    with pytest.raises(ValueError, match=r"need optimizer\.name adamw, not 'muon'"):
        tiny_config(workers=2, parallel={"shard": 2}, optimizer={"name": "muon"})
    with pytest.raises(
        ValueError, match=r"parallel\.pipeline 2 needs as many micro-batches; gradient_accumulation 1 is less"
    ):
        tiny_config(workers=2, parallel={"pipeline": 2})
