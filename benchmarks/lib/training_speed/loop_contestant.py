"""A loop as one writes it by hand: padding, a DataLoader, autocast, fused AdamW, clipping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from headway.engine.hardware.device import compute_dtype, precision_context
from lib.training_speed.clock import Clock
from lib.training_speed.peer_rows import MaskingCollator, peer_dataset, real_tokens
from lib.training_speed.setup import LEARNING_RATE, Setup, new_model


def run_loop(setup: Setup, clock: Clock, *, compiled: bool = False) -> None:
    """Train until enough steps are timed."""
    device = setup.device
    model: Any = new_model(setup.size, setup.paragraphs, device, ours=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    run_model = torch.compile(model) if compiled else model
    for batch in _batches(setup):
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with precision_context(compute_dtype("auto", device), device):
            loss = run_model(**on_device).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if clock.step_ended(real_tokens(on_device)):
            return


def _batches(setup: Setup) -> Iterator[dict[str, Tensor]]:
    """Epoch after epoch."""
    loader: DataLoader[Any] = DataLoader(
        peer_dataset(setup),
        batch_size=setup.sequences,
        shuffle=True,
        drop_last=True,
        collate_fn=MaskingCollator(setup),
        num_workers=setup.peer_loaders,
        prefetch_factor=2 if setup.peer_loaders else None,
        persistent_workers=setup.peer_loaders > 0,
        pin_memory=setup.device.type == "cuda",
    )
    while True:
        yield from loader
