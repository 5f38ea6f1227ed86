"""What a model costs to run, which searches weigh against its quality."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_training import tiny_batches, train, weights

from headway.sweeps.model_cost import model_cost


def test_the_cost_is_that_of_the_merged_model_which_is_saved(monkeypatch):
    plain, _ = train(None, steps=4)
    adapted, _ = train(None, steps=4, lora=True)
    before = weights(adapted)
    rows = tiny_batches(rows=8, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(peft.tuners.lora.Linear, "forward", lambda *_: pytest.fail("computed unmerged"))
        cost = model_cost(adapted, rows)
    assert cost["parameters"] == model_cost(plain, rows)["parameters"]
    assert cost["latency_ms"] > 0.0
    after = weights(adapted)
    assert before.keys() == after.keys(), "the trial goes on with its additions"
    assert all(torch.equal(before[name], after[name]) for name in before)
