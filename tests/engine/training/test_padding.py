"""Padding at the end of a batch changes no loss and no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_training import Trainer, tiny_batches, tiny_config, tiny_objective, tiny_pretraining_objective

from headway.engine.training.hooks import StepInfo


@pytest.mark.parametrize("positions", [1, 40])
@pytest.mark.parametrize("pretraining", [False, True])
def test_losses_and_gradients_are_those_of_the_batch_without_padding(pretraining, positions):
    [batch] = tiny_batches(pretraining=pretraining).micro_batches(0, 0, 1, 1)
    actual = []
    for each in (batch, batch.padded(len(batch.input_ids) + positions, token=7)):
        objective = (tiny_pretraining_objective if pretraining else tiny_objective)(dropout=0.0)
        terms = objective(each)
        torch.stack([term.total for term in terms.values()]).sum().backward()
        gradients = [weight.grad for weight in objective.parameters() if weight.grad is not None]
        actual.append([*(term.total for term in terms.values()), *gradients])
    for one, other in zip(*actual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def losses(processes: int) -> list[float]:
    optimizer = {"learning_rate": 5e-3}
    config = tiny_config(
        steps=60,
        batch_tokens=192,
        gradient_accumulation=2,
        log_every=1,
        loader_processes=processes,
        optimizer=optimizer,
    )
    batches: Any = tiny_batches()
    batches.batch_tokens = config.batch_tokens
    reported: list[float] = []

    def report(info: StepInfo) -> None:
        if "classification_loss" in info.metrics:
            reported.append(info.metrics["classification_loss"])

    trainer = Trainer(tiny_objective(dropout=0.0), batches, config)
    trainer.add_hook(report)
    trainer.run()
    return reported


def test_a_run_in_batches_of_so_many_tokens_learns_the_same_with_and_without_processes():
    alone = losses(processes=0)
    assert len(alone) == 60
    assert sum(alone[-10:]) < 0.9 * sum(alone[:10])
    assert losses(processes=2) == alone
