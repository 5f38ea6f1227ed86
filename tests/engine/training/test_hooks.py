"""Hooks: when they are called, what they are told, and what comes before and after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_batches, tiny_config, tiny_objective

from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker
from headway.engine.training.hooks import Hooks, StepInfo
from headway.engine.training.trainer import Stopped, Trainer

SETTINGS: dict[str, Any] = {"steps": 7, "log_every": 3, "evaluate_every": 2, "checkpoint_every": 4}


def trainer(folder: Path | None = None, **settings: Any) -> Trainer:
    worker = Worker()
    checkpoints = Checkpoints(Folder(folder), worker, keep=9) if folder is not None else None
    config = tiny_config(**(SETTINGS | settings))
    return Trainer(tiny_objective(), tiny_batches(), config, worker=worker, checkpoints=checkpoints)


def names(info: StepInfo) -> set[str]:
    return info.metrics.keys() & {"classification_loss", "validation_loss"}


def test_hooks_are_called_in_order_at_the_steps_that_they_ask_for():
    hooks, calls = Hooks(), []
    hooks.add(lambda info: calls.append(("every", info.step)), every=3)
    hooks.add(lambda info: calls.append(("at", info.step)), at=(0, 4))
    hooks.add(lambda info: calls.append(("whenever", info.step)))
    due = [step for step in range(7) if hooks.are_due(step)]
    assert due == [0, 3, 4, 6]
    for step in due:
        hooks.run(StepInfo(step, 6))
    assert calls == [
        *[("at", 0), ("whenever", 0)],
        *[("every", 3), ("whenever", 3)],
        *[("at", 4), ("whenever", 4)],
        *[("every", 6), ("whenever", 6)],
    ]


def test_a_hook_is_called_every_so_many_steps():
    steps: list[int] = []
    run = trainer()
    run.add_hook(lambda info: steps.append(info.step), every=2)
    run.run()
    assert steps == [2, 4, 6]


def test_a_hook_is_told_what_was_measured_whichever_was_added_first():
    """Losses come at step 1, every third and the last; evaluations at 0, every second and the last."""
    seen: list[tuple[int, set[str]]] = []
    run = trainer()
    run.add_hook(lambda info: seen.append((info.step, names(info))))
    run.add_evaluation(lambda module: {"validation_loss": 1.0})
    run.run()
    loss, score = {"classification_loss"}, {"validation_loss"}
    assert seen == [
        (0, score),
        (1, loss),
        (2, score),
        (3, loss),
        (4, score),
        (5, set()),
        (6, loss | score),
        (7, loss | score),
    ]


def test_evaluations_may_leave_out_the_start_and_come_at_chosen_steps():
    steps: list[int] = []
    run = trainer(evaluate_every=None, evaluate_at=(3, 5))
    run.add_evaluation(lambda module: {"validation_loss": 1.0}, at_start=False)
    run.add_hook(lambda info: steps.append(info.step) if "validation_loss" in info.metrics else None)
    run.run()
    assert steps == [3, 5, 7]


def test_a_state_is_saved_after_its_step_was_reported(tmp_path):
    saved: dict[int, list[int]] = {}
    run = trainer(tmp_path)

    def look(info: StepInfo) -> None:
        run.finish_saving()
        saved[info.step] = saved_steps(Folder(tmp_path))

    run.add_hook(look)
    run.run()
    assert saved[4] == [] and saved[5] == [4] and saved[7] == [4]
    assert saved_steps(Folder(tmp_path)) == [4, 7]


def test_a_run_whose_hook_fails_saves_no_state_of_that_step(tmp_path):
    def fail(info: StepInfo) -> None:
        if info.step == 4:
            raise KeyboardInterrupt

    run = trainer(tmp_path)
    run.add_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    run.finish_saving()
    assert saved_steps(Folder(tmp_path)) == []


def test_a_hook_stops_the_run_once_all_hooks_were_called_and_the_state_is_saved(tmp_path):
    steps: list[int] = []

    def stop(info: StepInfo) -> None:
        info.stop = info.step == 2

    run = trainer(tmp_path)
    run.add_hook(stop)
    run.add_hook(lambda info: steps.append(info.step))
    with pytest.raises(Stopped, match="stopped after step 2, whose state is saved"):
        run.run()
    assert steps == [1, 2]
    assert saved_steps(Folder(tmp_path)) == [2]


def test_a_run_is_evaluated_ten_times_and_saved_five_times_if_nothing_else_is_said(tmp_path):
    evaluated: list[int] = []
    run = trainer(tmp_path, steps=20, evaluate_every=None, checkpoint_every=None)
    run.add_evaluation(lambda module: {"validation_loss": 1.0})
    run.add_hook(lambda info: evaluated.append(info.step) if "validation_loss" in info.metrics else None)
    run.run()
    assert evaluated == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert saved_steps(Folder(tmp_path)) == [4, 8, 12, 16, 20]
