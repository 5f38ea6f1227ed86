"""Hugging Face's Trainer: dynamic padding, or grouped by length, or packed rows; compiled or not."""

from __future__ import annotations

import tempfile
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from headway.engine.hardware.device import has_fast_bf16
from lib.training_speed.clock import Clock
from lib.training_speed.peer_rows import MaskingCollator, peer_dataset, real_tokens
from lib.training_speed.setup import LEARNING_RATE, Setup, new_model

_MAX_STEPS = 100_000  # the clock ends the run


class _CountingTrainer(Trainer):
    """Trainer that counts its real tokens where batches arrive, not where they are made."""

    step_tokens: int | Tensor = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Trainer's own sampler reads one length at a time from the data set: 0.3 ms each, before every epoch.
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return LengthGroupedSampler(sampler.batch_size, lengths=self.train_dataset["length"][:])
        return sampler

    def training_step(self, model: nn.Module, inputs: Any, *arguments: Any, **settings: Any) -> Tensor:
        """See `Trainer`."""
        self.step_tokens = real_tokens(inputs)
        return super().training_step(model, inputs, *arguments, **settings)


class _StepEnds(TrainerCallback):
    """Tells the clock of each step, and ends the run when it says so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.trainer: _CountingTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        assert self.trainer is not None
        if self._clock.step_ended(self.trainer.step_tokens):
            control.should_training_stop = True


def run_trainer(
    setup: Setup, clock: Clock, *, grouped: bool = False, packed: bool = False, compiled: bool = False
) -> None:
    """Train until enough steps are timed."""
    step_ends = _StepEnds(clock)
    with tempfile.TemporaryDirectory() as folder:
        step_ends.trainer = _CountingTrainer(
            model=new_model(setup.size, setup.paragraphs, setup.device, ours=False),
            args=_arguments(setup, folder, grouped=grouped, compiled=compiled),
            train_dataset=peer_dataset(setup, packed=packed),
            data_collator=MaskingCollator(setup, packed=packed),
            callbacks=[step_ends],
        )
        step_ends.trainer.train()


def _arguments(setup: Setup, folder: str, *, grouped: bool, compiled: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=setup.sequences,
        max_steps=_MAX_STEPS,
        bf16=has_fast_bf16(setup.device),
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        torch_compile=compiled,
        train_sampling_strategy="group_by_length" if grouped else "random",
        # The collator takes what it needs, and the sampler reads the lengths.
        remove_unused_columns=False,
        use_cpu=setup.device.type == "cpu",
        dataloader_num_workers=setup.peer_loaders,
        dataloader_prefetch_factor=2 if setup.peer_loaders else None,
        dataloader_persistent_workers=setup.peer_loaders > 0,
        dataloader_drop_last=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
