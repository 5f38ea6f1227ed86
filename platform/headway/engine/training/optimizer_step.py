"""One optimizer step: run its micro-batches forward and backward, then update the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headway.config.training import TrainingConfig
from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.data.sampling import derived_seed, parts_of
from headway.engine.hardware.device import to_device
from headway.engine.model.compilation import checkpoint_activations, compile_model, is_worth_compiling
from headway.engine.parallel.clipping import clip_gradients
from headway.engine.parallel.gradients import Gradients
from headway.engine.parallel.pipeline import Losses
from headway.engine.parallel.worker import hold_back_sums
from headway.engine.training.contrastive import ContrastiveStep
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.health import StepHealth
from headway.engine.training.meter import Meter
from headway.engine.training.precision import ComputeCopy
from headway.engine.training.training_state import TrainingState


class OptimizerStep:
    """Updates a state's weights, by one global batch at a time.

    Nothing is read back from a GPU, since the host knows all lengths and counts.

    Attributes:
        compute: the state's objective, or a copy in half precision, to compute with.
        health: checks the gradients' norms.
    """

    def __init__(
        self,
        state: TrainingState,
        config: TrainingConfig,
        batches: BatchSource,
        flops: TrainingFlops,
        parts: int,
    ) -> None:
        """Prepare to train a state whose weights have been loaded.

        Args:
            state: what is trained.
            config: how it is trained, and for how many steps, which decide whether compiling pays off.
            batches: say which rows each worker has.
            flops: counts the FLOPs of batches.
            parts: how many parts each global batch is dealt into, over all workers.
        """
        self._state, self._config, self._flops, self._parts = state, config, flops, parts
        self._batches = batches
        self._worker = worker = state.worker
        self.health = StepHealth(state.optimizer, worker, state.scale)
        if config.activation_checkpointing:
            checkpoint_activations(state.objective)
        is_split = worker.mesh is not None  # then FSDP casts the weights
        self.compute = ComputeCopy(
            state.pipeline or state.objective, torch.float32 if is_split else state.dtype
        )
        wanted = config.compile
        if wanted is None:
            wanted = is_worth_compiling(worker.device, config.total_steps(batches))
        if wanted:
            # Workers average a layer's gradients, or gather its weights, while they compute another layer.
            by_layer = wanted != "trunk" or is_split or worker.world_size > 1
            compile_model(self.compute.module, by_layer=by_layer)
        self._gradients = Gradients(self.compute.weights, self.compute.copies, worker.average())

    def run(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        meter: Meter,
        on_device: Sequence[Batch] | None = None,
    ) -> int | None:
        """Take the step after `step` others, on this worker's part of its batch; see `Trainer.train_step`.

        Returns:
            `step` if the weights were not moved because its gradient is not finite.
        """
        self.compute.module.train()
        counts = self._global_counts(micro_batches)
        # Dropout is a function of (seed, step, part) too, so a resumed or resized run draws the same numbers.
        parts = parts_of(self._worker.data_rank, self._worker.data_size, self._parts)
        seeds = [derived_seed(self._config.seed, step, part) for part in parts]
        batches = on_device or [batch.to(self._worker.device) for batch in micro_batches]

        if self._state.objective.is_contrastive:
            losses: Losses = self._contrastive_losses(step, batches, seeds, counts)
        else:
            losses = partial(_mean_losses, counts)
        pipeline = self._state.pipeline
        backward = self._backward if pipeline is None else pipeline.backward
        # The loss is a mean over the whole batch, but gradients are averaged over data ranks, hence the
        # factor.
        meter.add(backward(batches, seeds, losses, self._worker.data_size), micro_batches, self._flops)
        return self._update(step, micro_batches, meter)

    def _contrastive_losses(
        self, step: int, batches: Sequence[Batch], seeds: Sequence[int], counts: dict[str, Tensor | int]
    ) -> ContrastiveStep:
        """Losses that see the vectors of all micro-batches on all workers."""
        objective, workers = self._state.objective, self._worker.data_size
        sizes = [sum(len(batch.lengths) for batch in batches)]
        if workers > 1:
            parts = self._batches.part_sizes(step, self._parts)
            dealt = [parts_of(rank, workers, self._parts) for rank in range(workers)]
            sizes = [sum(parts[part] for part in mine) for mine in dealt]
        losses = ContrastiveStep(objective, self._worker, sizes, counts)
        if len(batches) > 1:
            losses.see([self._vectors(batch, seed) for batch, seed in zip(batches, seeds, strict=True)])
        return losses

    @torch.no_grad()
    def _vectors(self, batch: Batch, seed: int) -> Tensor:
        """What backward is going to compute again of a micro-batch."""
        if self._state.pipeline is not None:
            return self._state.pipeline.outputs(batch, seed)
        torch.manual_seed(seed)
        module: Any = self.compute.module
        vectors: Tensor = module.outputs(batch)
        return vectors

    def _backward(
        self, batches: Sequence[Batch], seeds: Sequence[int], losses: Losses, scale: float
    ) -> dict[str, Tensor]:
        """Run micro-batches forward and backward, one after another; see `Pipeline.backward`."""
        sums: dict[str, Tensor] = {}
        module, loss_scale = self.compute.module, self._state.scale
        for index, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            torch.manual_seed(seed)
            is_last = index == len(batches) - 1
            found = losses(module, batch, index)
            total = torch.stack(list(found.values())).sum() * scale
            if loss_scale is not None:
                total = total * loss_scale.value
            hold_back_sums(module, not is_last)
            with self._gradients.collected(is_last):
                total.backward()
            sums = {name: sums.get(name, 0.0) + loss.detach() for name, loss in found.items()}
        self._gradients.give(loss_scale.value if loss_scale is not None else None)
        return sums

    def _update(self, step: int, micro_batches: Sequence[Batch], meter: Meter) -> int | None:
        """Clip the gradients, update the weights, and update the copy to compute with."""
        state = self._state
        borrowed = state.pipeline.borrowed if state.pipeline is not None else []
        norm = clip_gradients(state.objective, self._config.max_grad_norm, self._worker, borrowed)
        bad_step = self.health.saw(step, norm, micro_batches)
        if bad_step is not None:
            return bad_step
        meter.steps += 1
        # A norm that is not finite is not reported; in float16 the step is skipped, and the loss scale shows
        # it.
        meter.gradient_norm = torch.where(norm.isfinite(), norm, meter.gradient_norm)
        meter.learning_rate = state.optimizer.param_groups[0]["lr"]
        if not self.health.skips_step:
            state.optimizer.step()
        state.schedule.step()
        state.optimizer.zero_grad(set_to_none=True)
        self.compute.follow()
        return None

    def _global_counts(self, batches: Sequence[Batch]) -> dict[str, Tensor | int]:
        """How many predictions each loss has in the whole step, over all workers; at least 1."""
        mine = [self._state.objective.predictions(batch) for batch in batches]
        names = list(mine[0])
        counts = [sum(row[name] for row in mine) for name in names]
        if self._worker.data_size == 1:
            return dict(zip(names, [max(1, count) for count in counts], strict=True))
        everywhere = self._worker.sum(to_device(torch.tensor(counts), self._worker.device))
        return dict(zip(names, everywhere.clamp(min=1), strict=True))


def _mean_losses(
    counts: dict[str, Tensor | int], module: nn.Module, batch: Batch, index: int
) -> dict[str, Tensor]:
    """What a micro-batch adds to mean losses over so many predictions in the step."""
    return {name: term.total / counts[name] for name, term in module(batch).items()}
