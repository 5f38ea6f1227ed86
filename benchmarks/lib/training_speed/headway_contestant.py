"""Headway's engine as `headway pretrain` runs it, from making batches to moving weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headway.config.pretrain import MaskingConfig, PretrainConfig
from headway.config.training import OptimizerConfig
from headway.data.batch import Batch
from headway.engine.parallel.worker import Worker
from headway.engine.training.meter import Meter
from headway.engine.training.objectives import PretrainingObjective
from headway.engine.training.trainer import Trainer
from lib.training_speed.clock import Clock
from lib.training_speed.setup import LEARNING_RATE, Setup, headway_batches, new_model

_NEVER = 1_000_000
"""Steps of the run, which ends when the clock says so, and between reports, evaluations and saved states."""


class _Finished(Exception):  # noqa: N818, it is no error
    """Enough steps were timed."""


class _TimedTrainer(Trainer):
    """The training loop, with a clock that hears of each step and ends the run."""

    def __init__(self, *arguments: Any, clock: Clock, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._clock = clock

    def train_step(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        meter: Meter,
        on_device: Sequence[Batch] | None = None,
    ) -> None:
        """See `Trainer`."""
        super().train_step(step, micro_batches, meter, on_device)
        if self._clock.step_ended(sum(int(batch.lengths.sum()) for batch in micro_batches)):
            # A step whose gradient was not finite would have been skipped, and been fast.
            self.check_health()
            raise _Finished


def run_headway(setup: Setup, clock: Clock) -> None:
    """Train until enough steps are timed."""
    size = setup.size
    config = PretrainConfig(
        corpus="in memory",
        objective=["mlm"],
        masking=MaskingConfig(rate=size.masking),
        steps=_NEVER,
        batch_size=setup.sequences,
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        precision="auto",
        compile=setup.device.type == "cuda" and ("trunk" if setup.compile == "trunk" else True),
        log_every=_NEVER,
        evaluate_every=_NEVER,
        checkpoint_every=_NEVER,
    )
    model = new_model(size, setup.paragraphs, setup.device, ours=True)
    trainer = _TimedTrainer(
        PretrainingObjective(model, pairs=None),
        headway_batches(setup.paragraphs, setup.sequences, size.masking),
        config,
        worker=Worker(device=setup.device),
        clock=clock,
    )
    try:
        trainer.run()
    except _Finished:
        return
    raise RuntimeError(f"{_NEVER} steps were not enough")
