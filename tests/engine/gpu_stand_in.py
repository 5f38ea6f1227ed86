"""A training step as a GPU runs it, on the meta device: no arithmetic, and no number can be read back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.optim import adam
from torch.utils._python_dispatch import TorchDispatchMode

from headway.config.pretrain import PretrainConfig
from headway.data.batch import Batch
from headway.engine.parallel.worker import Worker
from headway.engine.training.meter import Meter
from headway.engine.training.trainer import Trainer

META = torch.device("meta")


class Operations(TorchDispatchMode):
    """Counts what is dispatched.

    Attributes:
        counts: by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*arguments, **(settings or {}))


def allow_fused_optimizers(monkeypatch: Any) -> None:
    """Let optimizers take the path that they take on a GPU; here they would refuse, for want of a kernel."""
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *_, **__: None)


def random_batch(lengths: list[int], vocab_size: int, labels: torch.Tensor | None = None) -> Batch:
    """Sequences of random tokens on the host, every seventh token to be guessed."""
    sizes = torch.tensor(lengths)
    ids = torch.randint(5, vocab_size, (int(sizes.sum()),))
    masked = torch.arange(0, len(ids), 7)
    return Batch.of(
        input_ids=ids,
        token_type_ids=torch.zeros_like(ids),
        lengths=sizes,
        labels=torch.zeros(len(sizes), dtype=torch.int64) if labels is None else labels,
        masked_positions=masked,
        masked_labels=ids[masked],
        row_ids=torch.arange(len(sizes)),
    )


class _NoBatches:
    rows = 1000


def trainer_on_meta(objective: Any, **settings: Any) -> Trainer:
    """A trainer in bf16 whose weights and batches lie on the meta device."""
    defaults = {"corpus": "none", "steps": 1000, "batch_size": 8, "precision": "bf16", "compile": False}
    config = PretrainConfig.model_validate(defaults | settings)
    return Trainer(objective, _NoBatches(), config, worker=Worker(device=META))  # type: ignore[arg-type]


def step(trainer: Trainer, number: int, batches: list[Batch]) -> None:
    """One step on batches from the host."""
    trainer.train_step(number, batches, Meter(), [batch.to(META) for batch in batches])
