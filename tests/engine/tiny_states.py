"""States of a tiny model, saved and loaded by one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_training import tiny_config, tiny_objective
from torch.optim import Optimizer

from headway.engine.checkpoint.checkpoints import Checkpoints, Restored
from headway.engine.checkpoint.storage import Folder
from headway.engine.optimizers.build import build_optimizer
from headway.engine.parallel.worker import Worker


def model_and_optimizer(value: float) -> tuple[torch.nn.Module, Optimizer]:
    objective = tiny_objective()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(value)
            parameter.grad = torch.full_like(parameter, value)
    optimizer = build_optimizer(objective, tiny_config().optimizer)
    optimizer.step()
    return objective, optimizer


def checkpoints_in(folder: Path | str, **settings: Any) -> Checkpoints:
    return Checkpoints(Folder(folder), Worker(device=torch.device("cpu")), **settings)


def save_steps(folder: Path, steps: dict[int, float | None], **settings: Any) -> Checkpoints:
    checkpoints = checkpoints_in(folder, **settings)
    for step, metric in steps.items():
        checkpoints.save(step, *model_and_optimizer(step), metric=metric)
    checkpoints.wait()
    return checkpoints


def restored_from(folder: Path | str) -> Restored:
    return checkpoints_in(folder).restore(*model_and_optimizer(0.0))


def folder_of(folder: Path, step: int) -> Path:
    [found] = folder.glob(f"step-{step:09d}-*")
    return found
