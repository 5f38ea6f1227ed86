"""States that trials of a population clone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headway.config.loading import apply_overrides, set_path, validate
from headway.config.pretrain import PretrainConfig
from headway.engine.parallel.worker import Worker
from headway.engine.training.trainer import Trainer
from headway.runs.pretraining import PretrainingJob
from headway.sweeps.ledger import Ledger
from headway.sweeps.pbt import can_change
from headway.sweeps.population import adopt_state, newest_state, restore_state, save_state, state_path


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
