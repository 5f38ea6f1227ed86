"""Gradients are clipped as PyTorch does; those of split models in `test_worker.py`."""

from __future__ import annotations

import pytest
import torch
from tiny_training import tiny_objective

from headway.engine.parallel.clipping import clip_gradients


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_is_pytorchs(limit: float) -> None:
    ours, theirs = tiny_objective(), tiny_objective()
    for module in (ours, theirs):
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
    norm = clip_gradients(ours, limit)
    assert norm == float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit))
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)
