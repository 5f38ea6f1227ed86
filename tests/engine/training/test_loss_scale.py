"""Training in float16: near float32, a gradient that overflows costs one step, and resuming is exact."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import same, tiny_batches, tiny_config, tiny_objective, train, train_in_processes, weights

from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker
from headway.engine.training import loss_scale
from headway.engine.training.health import TrainingError
from headway.engine.training.loss_scale import LossScale
from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Trainer

FP16: dict[str, Any] = {"precision": "fp16", "dropout": 0.0, "optimizer": {"learning_rate": 1e-3}}
CPU = torch.device("cpu")


def losses(history: list[tuple[int, dict[str, float]]]) -> list[float]:
    return [value for _, metrics in history for name, value in metrics.items() if name.endswith("_loss")]


@pytest.mark.parametrize("gradient_accumulation", [1, 3])
def test_losses_are_near_those_of_float32(gradient_accumulation: int) -> None:
    _, half = train(None, **FP16, gradient_accumulation=gradient_accumulation)
    _, full = train(None, **(FP16 | {"precision": "fp32"}), gradient_accumulation=gradient_accumulation)
    assert losses(half) == pytest.approx(losses(full), rel=5e-3)
    norms = [
        [metrics["gradient_norm"] for _, metrics in history if "gradient_norm" in metrics]
        for history in (half, full)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=2e-2)
    assert [metrics["loss_scale"] for _, metrics in half if "loss_scale" in metrics] == [65536.0] * len(
        norms[0]
    )


def test_gradients_too_small_for_float16_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a loss a million times as small; without a scale, most of them would be lost."""
    whole = float(take_step(small_trainer(), 0).gradient_norm)
    norms = []
    for initial in (2.0**16, 1.0):
        monkeypatch.setattr(loss_scale, "_INITIAL", initial)
        trainer = small_trainer()
        monkeypatch.setattr(
            trainer.optimizer_step, "_global_counts", lambda batches: {"classification": 12e6}
        )
        norms.append(float(take_step(trainer, 0).gradient_norm))
    assert norms[0] == pytest.approx(whole / 1e6, rel=0.02)
    assert norms[1] != pytest.approx(whole / 1e6, rel=0.1)


def small_trainer(optimizer: str = "adamw", **settings: Any) -> Trainer:
    config = tiny_config(precision="fp16", optimizer={"name": optimizer, "learning_rate": 1e-3}, **settings)
    return Trainer(tiny_objective(0.0), tiny_batches(), config, worker=Worker(device=CPU))


def take_step(trainer: Trainer, step: int) -> Meter:
    meter = Meter()
    trainer.train_step(step, trainer.batches.micro_batches(step, 0, 1, trainer.parts), meter)
    return meter


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    optimizer: Any = trainer.optimizer
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [value.clone() for value in [*trainer.objective.parameters(), *moments] if torch.is_tensor(value)]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "lion"])
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_skips_its_step_alone(optimizer: str, factor: float) -> None:
    """Lion cannot skip a step by itself; it is not run."""
    trainer = small_trainer(optimizer)
    broken = 2
    now = 0
    trainer.optimizer_step.compute.copies[3].register_hook(
        lambda gradient: gradient * (factor if now == broken else 1.0)
    )
    for now in range(5):
        before = state_of(trainer)
        meter = take_step(trainer, now)
        moved = any(
            not torch.equal(one, other) for one, other in zip(before, state_of(trainer), strict=False)
        )
        assert moved == (now != broken)
        assert trainer.optimizer_step.health.look() is None
        assert float(trainer.state.scale.value) == (2.0**16 if now < broken else 2.0**15)  # type: ignore[union-attr]
        assert (float(meter.gradient_norm) > 0) == (now != broken)


def test_the_scale_follows_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "_STEPS_BEFORE_GROWTH", 3)
    scale = LossScale(CPU)
    seen = []
    for found_inf in (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0):
        scale.update(torch.tensor(found_inf))
        seen.append(float(scale.value) / 2**16)
    assert seen == [1, 1, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_a_resumed_run_is_bit_identical(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale that grows until steps overflow, before the state and after it."""
    monkeypatch.setattr(loss_scale, "_STEPS_BEFORE_GROWTH", 1)
    monkeypatch.setattr(loss_scale, "_INITIAL", 2.0**20)
    settings = FP16 | {"optimizer": {"name": optimizer, "learning_rate": 1e-3}, "log_every": 1}
    untouched, history = train(None, **settings)
    _, before = train(tmp_path, stop_after=7, **settings)
    resumed, after = train(tmp_path, **settings)
    assert resumed.start_step == 7
    assert same(weights(resumed), weights(untouched))
    assert [entry for entry in before if entry[0] <= 7] + after == history
    scales = [metrics["loss_scale"] for _, metrics in history if "loss_scale" in metrics]
    changes = [later < earlier for earlier, later in pairwise(scales)]
    assert any(changes[:6]) and any(changes[7:])


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_gradients_that_no_scale_makes_finite_end_the_run(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "_INITIAL", 2.0**-8)
    checkpoints = Checkpoints(Folder(tmp_path), Worker(device=CPU))
    config = tiny_config(
        precision="fp16", optimizer={"name": optimizer}, checkpoint_every=100, evaluate_every=100
    )
    trainer = Trainer(
        tiny_objective(0.0), tiny_batches(), config, worker=Worker(device=CPU), checkpoints=checkpoints
    )
    for copy in trainer.optimizer_step.compute.copies:
        copy.register_hook(lambda gradient: gradient * float("inf") if len(steps) > 4 else gradient)
    steps: list[int] = []
    take = trainer.train_step

    def counted(step: int, *rest: Any) -> None:
        steps.append(step)
        take(step, *rest)

    monkeypatch.setattr(trainer, "train_step", counted)
    with pytest.raises(
        TrainingError, match="step 5 is not finite, however small the loss scale; try a lower"
    ):
        trainer.run()
    assert len(steps) == 4 + 3  # 2^-9, 2^-10, 2^-11
    assert saved_steps(checkpoints.folder) == [4]
    assert (
        checkpoints.restore(trainer.objective, trainer.optimizer).worker_states[0]["loss_scale"]["value"]
        == 2.0**-8
    )


def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    results = train_in_processes(
        [
            {"name": "alone", "world": 1, "gradient_accumulation": 2, **FP16},
            {"name": "two", "world": 2, "gradient_accumulation": 2, **FP16},
        ],
        tmp_path,
    )
    assert losses(results["two"]["history"]) == pytest.approx(losses(results["alone"]["history"]), rel=5e-3)


def test_a_split_model_is_not_trained_in_fp16() -> None:
    with pytest.raises(ValueError, match="tensor and pipeline need precision bf16 or fp32, not 'fp16'"):
        tiny_config(workers=2, parallel={"shard": 2}, precision="fp16")
