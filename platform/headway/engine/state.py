"""What must be saved for a stopped run to go on as if it had not stopped.

Batches and random numbers are functions of (seed, step), so weights, the optimizer and the step are all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from headway.data.atomic import atomic_folder

_PREFIX = "step-"
_KEPT = 2


def save_state(folder: Path, step: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Save the state after `step` steps under `folder`, whole or not at all; keeps the newest two."""
    with atomic_folder(folder / f"{_PREFIX}{step:09d}") as draft:
        torch.save(
            {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()},
            draft / "state.pt",
        )
    for old in _saved(folder)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def restore_state(folder: Path, model: nn.Module, optimizer: Optimizer, device: torch.device) -> int:
    """Load the newest state into the model and the optimizer.

    Returns:
        The number of steps done; 0, and nothing loaded, where none is saved.
    """
    saved = _saved(folder)
    if not saved:
        return 0
    state: dict[str, Any] = torch.load(saved[-1] / "state.pt", map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))
