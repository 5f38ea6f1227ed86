"""What optimizer steps change, and a checkpoint saves: weights, optimizer, learning rate and loss scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headway.config.training import TrainingConfig
from headway.engine.checkpoint.checkpoints import Checkpoints, Restored, WorkerState
from headway.engine.hardware.device import compute_dtype
from headway.engine.optimizers.build import build_optimizer
from headway.engine.optimizers.schedules import build_schedule, skip_to
from headway.engine.parallel.pipeline import Pipeline
from headway.engine.parallel.worker import Worker
from headway.engine.training.loss_scale import LossScale
from headway.engine.training.meter import Meter


class TrainingState:
    """An objective and its optimizer, split over the workers.

    Attributes:
        objective: the module to train; its weights are float32, whatever dtype is computed in.
        worker: this process among the workers.
        dtype: the dtype of computations.
        scale: the factor on the loss in float16; otherwise None.
        pipeline: the objective over several stages; None if each worker has all layers.
        optimizer: of the objective's weights.
        schedule: of the learning rate.
        parts: that each global batch is dealt into, over all workers; as many as before if a run continues
            with fewer workers, since dropout is drawn by part.
    """

    def __init__(self, objective: nn.Module, config: TrainingConfig, worker: Worker, steps: int) -> None:
        """Split an objective that is on the worker's device, for a run of `steps` steps."""
        self.objective: Any = objective
        self.worker = worker
        self.parts = max(config.parts, worker.data_size * config.gradient_accumulation)
        self.dtype = compute_dtype(config.precision, worker.device)
        if self.dtype == torch.float16 and worker.mesh is not None:
            self.dtype = torch.float32  # FSDP gives gradients that the loss scale has not been divided out of
        self.scale = LossScale(worker.device) if self.dtype == torch.float16 else None
        self.pipeline: Pipeline | None = None
        if worker.stages > 1:
            self.pipeline = Pipeline(self.objective, worker, self.dtype)
        else:
            worker.split(self.objective, self.dtype)
        self.optimizer = build_optimizer(self.objective, config.optimizer, worker)
        waiting = round(config.new_weights_first * steps)
        scales = config.learning_rate_scales(steps)
        self.schedule = build_schedule(self.optimizer, config.schedule, steps, waiting, scales)

    def restore(self, checkpoints: Checkpoints) -> Restored:
        """Load the newest undamaged state, if there is one."""
        restored = checkpoints.restore(self.objective, self.optimizer)
        skip_to(self.schedule, restored.step)
        if self.scale is not None and restored.worker_states and "loss_scale" in restored.worker_states[0]:
            self.scale.load_state(restored.worker_states[0]["loss_scale"])
        self._keep_parts(max((worker_state["parts"] for worker_state in restored.worker_states), default=0))
        return restored

    def save(self, checkpoints: Checkpoints, step: int, meter: Meter, validation_loss: float | None) -> None:
        """Save the state after `step` steps, and the metrics since the last report."""
        worker_state: WorkerState = {
            "data_rank": self.worker.data_rank,
            "meter": meter.state(),
            "parts": self.parts,
        }
        if self.scale is not None:
            worker_state["loss_scale"] = self.scale.state()
        checkpoints.save(step, self.objective, self.optimizer, worker_state, validation_loss)

    def _keep_parts(self, parts: int) -> None:
        """Deal batches into as many parts as the saved state's run did, if they are more.

        Workers that split the model need as many parts each, since they compute them together.
        """
        if parts > self.parts and (self.worker.mesh is None or parts % self.worker.data_size == 0):
            self.parts = parts


def resumed_meter(restored: Restored, worker: Worker) -> Meter:
    """The sums since the last report, as they were when the state was saved."""
    # Workers of one data rank, over which the model is split, measured the same.
    by_rank = {worker_state["data_rank"]: worker_state["meter"] for worker_state in restored.worker_states}
    return Meter.resumed(list(by_rank.values()), worker)
