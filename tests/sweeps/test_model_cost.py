"""What a model costs to run: the model that is saved, not the one that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_training import tiny_batches, tiny_objective, train
from torch import nn

from headway.sweeps.model_cost import model_cost


class Watched:
    """Validation rows that note, while they are read, whether a module has low-rank additions."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.seen: list[bool] = []

    def in_order(self, *arguments: Any) -> Iterator[Any]:
        for batch in tiny_batches(batch_size=4).in_order(*arguments):
            self.seen.append(has_additions(self.module))
            yield batch


def has_additions(module: nn.Module) -> bool:
    return any("lora" in name for name, _ in module.named_parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_low_rank_additions_cost_nothing_since_they_are_merged(precision):
    trainer, _ = train(None, lora=True, precision=precision, stop_after=1)
    module = trainer.optimizer_step.compute.module
    rows: Any = Watched(module)
    cost = model_cost(trainer, rows)
    assert cost["parameters"] == sum(weight.numel() for weight in tiny_objective().parameters())
    assert cost["latency_ms"] > 0
    assert rows.seen
    assert not any(rows.seen)
    assert has_additions(module), "they are there again for training"
