"""States that trials save at each evaluation, for population-based training to clone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from headway.data.atomic import write_atomically
from headway.engine.optimizers.schedules import skip_to
from headway.engine.training.trainer import Trainer
from headway.sweeps.ledger import Trial

_NEWEST = "newest"
"""The file that names the state to continue from."""


def state_path(trial: Trial, step: int) -> Path:
    """The file of a trial's state after so many steps."""
    return trial.folder / "population" / f"{step:09d}.pt"


def step_of(state: Path | None) -> int:
    """Steps after which a state was saved; 0 without one."""
    return int(state.stem.partition("-")[0]) if state is not None else 0


def newest_state(trial: Trial) -> Path | None:
    """The state that the trial saved or adopted last; None before the first.

    It is not always that of most steps: a trial may have adopted one from earlier in the run.
    """
    names = trial.folder / "population" / _NEWEST
    return names.with_name(names.read_text(encoding="utf-8")) if names.is_file() else None


def adopt_state(trial: Trial, state: Path) -> Path:
    """Make another trial's state one of the trial's own, to continue from even if its process dies."""
    folder = trial.folder / "population"
    if state.parent == folder:
        return state
    folder.mkdir(exist_ok=True)
    adopted = folder / f"{step_of(state):09d}-from-{state.parents[1].name}.pt"
    if not adopted.exists():
        try:
            os.link(state, adopted)
        except OSError:  # some storage has no links
            shutil.copyfile(state, adopted)
    write_atomically(folder / _NEWEST, adopted.name)
    return adopted


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
    write_atomically(path.with_name(_NEWEST), path.name)
    for adopted in path.parent.glob("*-from-*.pt"):
        adopted.unlink()


def restore_state(trainer: Trainer, path: Path) -> None:
    """Load weights and optimizer state; learning rate and weight decay stay those of the trial.

    An optimizer of another kind, or with other groups of weights, starts without state.
    """
    state = torch.load(path, map_location=trainer.worker.device, weights_only=True)
    trainer.objective.load_state_dict(state["model"])
    saved, groups = state["optimizer"]["param_groups"], trainer.optimizer.param_groups
    is_same_kind = type(trainer.optimizer).__name__ == state["optimizer_kind"]
    if is_same_kind and [len(g["params"]) for g in saved] == [len(g["params"]) for g in groups]:
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


class _Replaced(NamedTuple):
    state: Path
    at: int


class PopulationStates:
    """Which states of a population no trial can continue from any more.

    A trial that is to continue from another's state is told so at a report, and has read that state when it
    next reports itself. It is always the state that the other trial reported last. So a state may be deleted
    once a newer one has taken its place and every trial that still runs has reported since.
    """

    def __init__(self) -> None:
        self._reports = 0
        self._last_report: dict[Trial, int] = {}
        self._newest: dict[Trial, Path] = {}
        self._replaced: list[_Replaced] = []

    def reported(self, trial: Trial, step: int) -> list[Path]:
        """Take in that a trial reported its state after so many steps; returns the states that may go now."""
        state = state_path(trial, step)
        self._replace(trial)
        # A trial that continues from another's state may come by a step that it had passed before.
        self._replaced = [replaced for replaced in self._replaced if replaced.state != state]
        self._newest[trial] = state
        self._last_report[trial] = self._reports
        return self._unneeded()

    def ended(self, trial: Trial) -> list[Path]:
        """Take in that a trial has ended; returns the states that may go now."""
        self._replace(trial)
        self._last_report.pop(trial, None)
        return self._unneeded()

    def _replace(self, trial: Trial) -> None:
        self._reports += 1
        if trial in self._newest:
            self._replaced.append(_Replaced(self._newest.pop(trial), self._reports))

    def _unneeded(self) -> list[Path]:
        oldest = min(self._last_report.values(), default=self._reports)
        unneeded = [replaced.state for replaced in self._replaced if replaced.at <= oldest]
        self._replaced = [replaced for replaced in self._replaced if replaced.at > oldest]
        return unneeded
