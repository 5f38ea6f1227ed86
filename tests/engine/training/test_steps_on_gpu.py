"""Steps on a real GPU: nothing waits for it, and optimizers of our own move weights as they do on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import tiny_batches, tiny_config, tiny_objective

from headway.config.training import OptimizerConfig
from headway.engine.optimizers.build import build_optimizer
from headway.engine.parallel.worker import Worker
from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
OWN = ["adamw", "lamb", "muon"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", OWN)
def test_a_step_waits_for_nothing(name: str, precision: str) -> None:
    config = tiny_config(precision=precision, optimizer={"name": name}, compile=False)
    trainer = Trainer(tiny_objective(), tiny_batches(), config, worker=Worker(device=GPU))
    for step in range(4):
        batches = trainer.batches.micro_batches(step, 0, 1, trainer.parts)
        on_device = [batch.to(GPU) for batch in batches]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
        try:
            trainer.train_step(step, batches, Meter(), on_device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.optimizer_step.health.look() is None


@pytest.mark.parametrize("name", OWN)
def test_weights_move_as_on_a_cpu_and_found_inf_keeps_them(name: str) -> None:
    config = OptimizerConfig.model_validate({"name": name, "learning_rate": 1e-2, "weight_decay": 0.1})
    here, there = tiny_objective(), tiny_objective().to(GPU)
    start = {key: weight.detach().clone() for key, weight in here.named_parameters()}
    optimizers: list[Any] = [build_optimizer(module, config) for module in (here, there)]
    generator = torch.Generator().manual_seed(0)
    for broken in (False, False, True):
        for near, far in zip(here.parameters(), there.parameters(), strict=True):
            near.grad = torch.randn(near.shape, generator=generator)
            far.grad = torch.full_like(far, float("nan")) if broken else near.grad.to(GPU)
        optimizers[1].found_inf = torch.full((), float(broken), device=GPU)
        optimizers[1].step()
        if not broken:
            optimizers[0].step()
    for (key, near), far in zip(here.named_parameters(), there.parameters(), strict=True):
        moved, expected = far.detach().cpu() - start[key], near.detach() - start[key]
        tolerance = 0.03 if name == "muon" else 1e-3
        assert float((moved - expected).norm()) <= tolerance * float(expected.norm()), key
