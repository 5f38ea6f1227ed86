"""One of the processes that share Muon's work, in a module that a spawned process can import."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tiny_training import tiny_objective

from headway.config.training import OptimizerConfig
from headway.engine.optimizers import muon
from headway.engine.optimizers.build import build_optimizer
from headway.engine.parallel.worker import Worker

CONFIG = OptimizerConfig(name="muon", learning_rate=1e-2, weight_decay=0.1)


def take_steps(worker: Worker | None, steps: int = 3) -> tuple[dict[str, Any], int]:
    """Weights after steps along random gradients, and how many matrices this process orthogonalised."""
    computed = 0
    alone = muon.newton_schulz

    def counting(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        nonlocal computed
        computed += int((matrices.flatten(1) != 0).any(1).sum())
        return alone(matrices, dtype)

    muon.newton_schulz = counting
    objective = tiny_objective()
    optimizer = build_optimizer(objective, CONFIG, worker)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for weight in objective.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    muon.newton_schulz = alone
    return objective.state_dict(), computed


def share_work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(take_steps(Worker(rank, world, torch.device("cpu"))), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
