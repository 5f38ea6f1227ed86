"""States that trials save at each evaluation, for population-based training to clone."""

from __future__ import annotations

from pathlib import Path

import torch

from headway.engine.optimizers.schedules import skip_to
from headway.engine.training.trainer import Trainer
from headway.sweeps.ledger import Trial


def state_path(trial: Trial, step: int) -> Path:
    """The file of a trial's state after so many steps."""
    return trial.folder / "population" / f"{step:09d}.pt"


def step_of(state: Path | None) -> int:
    """Steps after which a state was saved; 0 without one."""
    return int(state.stem) if state is not None else 0


def newest_state(trial: Trial) -> Path | None:
    """The trial's own newest state; None before the first."""
    return max((trial.folder / "population").glob("*.pt"), default=None)


def save_state(trainer: Trainer, path: Path, step: int) -> None:
    """Save what a clone needs: the weights and the optimizer's state."""
    path.parent.mkdir(exist_ok=True)
    state = {
        "step": step,
        "model": trainer.objective.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "optimizer_kind": type(trainer.optimizer).__name__,
    }
    draft = path.with_suffix(".draft")
    torch.save(state, draft)
    draft.replace(path)


def restore_state(trainer: Trainer, path: Path) -> None:
    """Load weights and optimizer state; learning rate and weight decay stay those of the trial.

    An optimizer of another kind starts without state.
    """
    state = torch.load(path, map_location=trainer.worker.device, weights_only=True)
    trainer.objective.load_state_dict(state["model"])
    if type(trainer.optimizer).__name__ == state["optimizer_kind"]:
        own_settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in trainer.optimizer.param_groups
        ]
        trainer.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(trainer.optimizer.param_groups, own_settings, strict=True):
            group.update(settings)
    skip_to(trainer.state.schedule, state["step"])
    trainer.optimizer_step.compute.follow()
    trainer.start_step = state["step"]
