"""States that trials of a population clone, and which of them may be deleted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from headway.config.loading import apply_overrides, set_path, validate
from headway.config.pretrain import PretrainConfig
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Trainer
from headway.runs.pretraining import PretrainingJob
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.pbt import can_change
from headway.sweeps.population import (
    PopulationStates,
    adopt_state,
    newest_state,
    restore_state,
    save_state,
    state_path,
)


@pytest.fixture
def settings(corpus: Any, tiny_shape: dict[str, Any]) -> dict[str, Any]:
    return {
        "corpus": str(corpus.folder),
        "model": tiny_shape,
        "steps": 4,
        "batch_size": 8,
        "precision": "fp32",
        "optimizer": {"learning_rate": 1e-3},
    }


def trainer_of(settings: dict[str, Any], **changes: Any) -> Trainer:
    settings = apply_overrides(settings, [])
    for path, value in changes.items():
        set_path(settings, path.replace("__", "."), value)
    config = validate(PretrainConfig, settings)
    job = PretrainingJob(config, Path(settings["corpus"]), None)
    return Trainer(job.objective(), job.batches()[0], config, worker=Worker(device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("path", "value", "keeps_moments"),
    [
        ("optimizer.learning_rate", 3e-3, True),
        ("optimizer.weight_decay", 0.1, True),
        ("optimizer.betas", (0.8, 0.9), True),
        ("optimizer.layerwise_lr_decay", 0.8, False),
        ("optimizer.name", "lamb", False),
        ("schedule.name", "cosine", True),
        ("schedule.warmup", 0.5, True),
        ("batch_size", 16, True),
        ("max_grad_norm", 0.5, True),
        ("masking.rate", 0.3, True),
    ],
)
def test_a_clone_with_a_changed_setting_has_the_weights_and_its_own_settings(
    path, value, keeps_moments, settings, tmp_path
):
    assert can_change(path)
    cloned = trainer_of(settings)
    cloned.run()
    trial = Ledger(tmp_path).new({})
    save_state(cloned, state_path(trial, 4), 4)
    found = newest_state(trial)
    assert found == state_path(trial, 4)
    clone_trial = Ledger(tmp_path).new({})
    adopted = adopt_state(clone_trial, found)
    assert newest_state(clone_trial) == adopted
    clone = trainer_of(settings | {"steps": 6}, **{path.replace(".", "__"): value})
    restore_state(clone, adopted)
    pairs = zip(cloned.objective.state_dict().values(), clone.objective.state_dict().values(), strict=True)
    assert all(torch.equal(theirs, own) for theirs, own in pairs)
    assert bool(clone.optimizer.state_dict()["state"]) == keeps_moments
    if path == "optimizer.weight_decay":
        assert clone.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert clone.start_step == 4
    clone.run()
    save_state(clone, state_path(clone_trial, 6), 6)
    assert newest_state(clone_trial) == state_path(clone_trial, 6)
    # What it came from is needed no longer, and takes as much of the disk.
    assert list(adopted.parent.glob("*.pt")) == [state_path(clone_trial, 6)]


def test_what_shapes_the_weights_cannot_change(settings):
    for path in ("model.hidden_size", "objective", "layers", "lora", "lora.modules", "steps", "model"):
        assert not can_change(path)


def trials(number: int) -> list[Trial]:
    return [Trial(Path(f"{index:05d}")) for index in range(number)]


def test_a_state_goes_once_all_have_reported_after_a_newer_one_took_its_place():
    states, (a, b) = PopulationStates(), trials(2)
    assert states.reported(a, 1) == []
    assert states.reported(b, 1) == []
    # b may have been told to continue from a's first state, and reads it when it begins again.
    assert states.reported(a, 2) == []
    assert states.reported(b, 2) == [state_path(a, 1)]
    assert states.reported(a, 3) == [state_path(b, 1)]


def test_the_last_state_of_a_trial_stays_until_all_have_reported_after_its_end():
    states, (a, b) = PopulationStates(), trials(2)
    states.reported(a, 1)
    states.reported(b, 1)
    assert states.ended(a) == []
    assert states.reported(b, 2) == [state_path(a, 1), state_path(b, 1)]
    assert states.ended(b) == [state_path(b, 2)]


def test_a_trial_that_was_set_back_keeps_the_state_it_comes_by_again():
    states, (a, b) = PopulationStates(), trials(2)
    for step in (1, 2):
        states.reported(a, step)
    states.reported(b, 1)
    # It continues from b's first state, and comes by step 2 again.
    assert state_path(a, 2) not in states.reported(a, 2)
    assert state_path(a, 2) not in states.reported(b, 2)
    gone = [path for step in (3, 4) for path in (*states.reported(a, step), *states.reported(b, step))]
    assert state_path(a, 2) in gone
    assert state_path(a, 4) not in gone


def test_in_any_order_of_reports_no_state_goes_that_is_still_to_be_read():
    """Whoever reports may be told to continue from another's newest state, as in population training."""
    rng = random.Random(0)
    for _ in range(50):
        states, population = PopulationStates(), trials(5)
        steps = dict.fromkeys(population, 0)
        newest: dict[Trial, Path] = {}
        to_read: dict[Trial, Path] = {}
        for _ in range(100):
            trial = rng.choice(population)
            to_read.pop(trial, None)  # it has begun again since
            if trial in newest and rng.random() < 0.3:
                steps[trial] = rng.choice(list(steps.values()))
            steps[trial] += 1
            others = [state for other, state in newest.items() if other != trial]
            if others and rng.random() < 0.5:
                to_read[trial] = rng.choice(others)
            newest[trial] = state_path(trial, steps[trial])
            gone = states.reported(trial, steps[trial])
            assert not set(gone) & {*to_read.values(), *newest.values()}
        assert len(states._replaced) < 60, "they pile up"
