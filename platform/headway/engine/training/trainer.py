"""The training loop: one for pretraining and fine-tuning, in one process or in many.

On a GPU the host only ever runs ahead: it knows all lengths and counts itself, and reads losses, norms and
whether they are finite when it reports, evaluates or saves, not between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headway.config.training import TrainingConfig
from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.data.sampling import derived_seed, parts_of
from headway.engine.checkpoint.checkpoints import Checkpoints, Own, Restored
from headway.engine.hardware.device import compute_dtype, to_device, use_tf32
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.model.compilation import checkpoint_activations, compile_model, is_worth_compiling
from headway.engine.optimizers.build import build_optimizer, use_result_weights, use_training_weights
from headway.engine.optimizers.schedules import build_schedule, skip_to
from headway.engine.parallel.gradients import Gradients
from headway.engine.parallel.pipeline import Pipeline, Weigh
from headway.engine.parallel.worker import Worker, clip_gradients, hold_back_sums
from headway.engine.training.batch_processes import start_fork_server
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.health import StepHealth
from headway.engine.training.loader import Loader, loader_processes
from headway.engine.training.loss_scale import LossScale
from headway.engine.training.meter import Meter, Metrics
from headway.engine.training.objectives import Term
from headway.engine.training.precision import ComputeCopy

Report = Callable[[int, Metrics], None]
"""Called with the number of steps done and what was measured, on every worker alike."""
Evaluator = Callable[[Any], Metrics]
"""Measures an objective on the validation rows; called on every worker, and answers the same on each."""

_GPU_STEPS_BETWEEN_LOOKS = 10
"""Steps after which workers with GPUs agree on whether to stop: each look waits for the GPU."""


class Stopped(RuntimeError):  # noqa: N818, it is no error
    """Training was asked to stop; its state is saved, and the same run goes on from there."""


class Trainer:
    """Minimises an objective over batches, for a number of steps, from where a saved state left off.

    Attributes:
        objective: what is trained; its weights are float32, whatever is computed with.
        start_step: steps that the saved state had behind it; 0 when there was none.
        total_steps: steps of the whole run.
    """

    def __init__(
        self,
        objective: nn.Module,
        batches: BatchSource,
        config: TrainingConfig,
        *,
        validation: BatchSource | None = None,
        worker: Worker | None = None,
        checkpoints: Checkpoints | None = None,
        report: Report = lambda step, metrics: None,
        evaluator: Evaluator | None = None,
        stop: Callable[[], bool] = lambda: False,
        measure_start: bool = True,
    ) -> None:
        self.worker = worker or Worker()
        self.loader_processes = loader_processes(config.loader_processes, self.worker.device)
        if self.loader_processes:
            start_fork_server()
        self.objective: Any = objective.to(self.worker.device)
        self.flops = TrainingFlops.of(self.objective)
        self.batches = batches
        self.validation = validation
        self.config = config
        self.checkpoints = checkpoints
        self.report = report
        self.evaluator = evaluator
        self.stop = stop
        self.measure_start = measure_start
        self.total_steps = config.total_steps(batches)
        max_data_size = max(config.max_data_size, self.worker.shares)
        self.parts = max_data_size * config.gradient_accumulation
        use_tf32(config.tf32)
        self.dtype = compute_dtype(config.precision, self.worker.device)
        if self.dtype == torch.float16 and self.worker.mesh is not None:
            self.dtype = torch.float32  # FSDP gives gradients that nothing has divided
        self.scale = LossScale(self.worker.device) if self.dtype == torch.float16 else None
        self.pipeline: Pipeline | None = None
        if self.worker.stages > 1:
            self.pipeline = Pipeline(self.objective, self.worker, self.dtype)
        else:
            self.worker.split(self.objective, self.dtype)
        self.optimizer = build_optimizer(self.objective, config.optimizer, self.worker)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.total_steps)
        self.health = StepHealth(self.optimizer, self.worker, self.scale)
        self.restored = self._resume()
        self.start_step = self.restored.step
        if config.activation_checkpointing:
            checkpoint_activations(self.objective)
        is_split = self.worker.mesh is not None  # then it casts by itself
        self.compute = ComputeCopy(self.pipeline or self.objective, torch.float32 if is_split else self.dtype)
        wanted = config.compile
        if wanted is None:
            wanted = is_worth_compiling(self.worker.device, self.total_steps)
        if wanted:
            # Workers send off a layer's gradients, or gather its weights, while they compute another.
            by_layer = wanted != "trunk" or is_split or self.worker.world_size > 1
            compile_model(self.compute.module, by_layer=by_layer)
        self.gradients = Gradients(self.compute.weights, self.compute.copies, self.worker.average())

    def run(self) -> None:
        """Train to the last step, reporting, evaluating and saving on the way.

        The objective's weights are the result's from the last report on.

        Raises:
            TrainingError: a gradient that is not finite, in float16 one that no loss scale makes finite; the
                state before that step is saved.
            Stopped: some worker was asked to stop.
        """
        if self.start_step == 0 and self.measure_start:
            self.report(0, self.evaluate())
        meter = self._resumed_meter()
        validation_loss = self.restored.metric
        started = time.perf_counter()
        with self._loader() as loader:
            for index, micro_batches, on_device in loader:
                self.train_step(index, micro_batches, meter, on_device)
                step = index + 1
                if not self._looks_after(step):
                    continue
                synchronise(self.worker.device)
                meter.seconds += time.perf_counter() - started
                self._end_if_unhealthy(self.health.look())
                metrics: Metrics = {}
                if self._reports_after(step):
                    metrics |= meter.metrics(self.worker, self.dtype)
                    if self.scale is not None:
                        metrics["loss_scale"] = float(self.scale.value)
                    meter = Meter()
                if self._evaluates_after(step):
                    metrics |= self.evaluate()
                if step == self.total_steps:
                    use_result_weights(self.optimizer)
                if metrics:
                    self.report(step, metrics)
                validation_loss = metrics.get("validation_loss", validation_loss)
                stopping = self.worker.any(self.stop())
                # After the report: where there is a state, there is all that was measured before it.
                if stopping or self._saves_after(step):
                    self._save(step, meter, validation_loss)
                if stopping:
                    self.finish_saving()
                    raise Stopped(f"stopped after step {step}, whose state is saved")
                started = time.perf_counter()
        self.finish_saving()

    def _loader(self) -> Loader:
        worker = self.worker
        make = partial(
            self.batches.micro_batches, rank=worker.share, world_size=worker.shares, parts=self.parts
        )
        first, stop = self.start_step, self.total_steps
        return Loader(make, first, stop, device=worker.device, processes=self.loader_processes)

    def evaluate(self) -> Metrics:
        """Mean losses and accuracies over the validation rows, or what `evaluator` measures on them."""
        if self.validation is None and self.evaluator is None:
            return {}
        use_result_weights(self.optimizer)
        self.compute.follow()
        module = self.compute.module.eval()
        metrics = self._measured(module)
        use_training_weights(self.optimizer)
        self.compute.follow()
        return metrics

    def _measured(self, module: nn.Module) -> Metrics:
        if self.evaluator is not None:
            return self.evaluator(module)
        assert self.validation is not None
        return mean_losses(module, self.validation, self.worker, self.config.batch_size)

    def train_step(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        meter: Meter,
        on_device: Sequence[Batch] | None = None,
    ) -> None:
        """One optimizer step, the one after `step` others, on this worker's share of its batch.

        Args:
            step: counted from 0.
            micro_batches: on the host.
            meter: counts what was done.
            on_device: the same ones where they are computed, if they have been copied there already.
        """
        self.compute.module.train()
        counts = self._global_counts(micro_batches)
        # Dropout, too, is a function of (seed, step, part): a resumed or resized run draws the same.
        parts = parts_of(self.worker.share, self.worker.shares, self.parts)
        seeds = [derived_seed(self.config.seed, step, part) for part in parts]
        batches = on_device or [batch.to(self.worker.device) for batch in micro_batches]

        def weigh(terms: dict[str, Term]) -> dict[str, Tensor]:
            return {name: term.total / counts[name] for name, term in terms.items()}

        backward = self._backward if self.pipeline is None else self.pipeline.backward
        # Gradients are averaged over the shares; the loss is a mean over all of them, hence the factor.
        meter.add(backward(batches, seeds, weigh, self.worker.shares), micro_batches, self.flops)
        self._update(step, micro_batches, meter)

    def _backward(
        self, batches: Sequence[Batch], seeds: Sequence[int], weigh: Weigh, scale: float
    ) -> dict[str, Tensor]:
        """Run micro-batches forward and backward, one after the other; see `Pipeline.backward`."""
        sums: dict[str, Tensor] = {}
        module = self.compute.module
        for index, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            torch.manual_seed(seed)
            is_last = index == len(batches) - 1
            losses = weigh(module(batch))
            total = torch.stack(list(losses.values())).sum() * scale
            if self.scale is not None:
                total = total * self.scale.value
            hold_back_sums(module, not is_last)
            with self.gradients.collected(is_last):
                total.backward()
            sums = {name: sums.get(name, 0.0) + loss.detach() for name, loss in losses.items()}
        self.gradients.give(self.scale.value if self.scale is not None else None)
        return sums

    def _update(self, step: int, micro_batches: Sequence[Batch], meter: Meter) -> None:
        """Clip the gradients, move the weights, and bring the compute copy up to them."""
        borrowed = self.pipeline.borrowed if self.pipeline is not None else []
        norm = clip_gradients(self.objective, self.config.max_grad_norm, self.worker, borrowed)
        self._end_if_unhealthy(self.health.saw(step, norm, micro_batches))
        meter.steps += 1
        # What is not finite is no measure; in float16 the step is skipped, and said so by the loss scale.
        meter.gradient_norm = torch.where(norm.isfinite(), norm, meter.gradient_norm)
        meter.learning_rate = self.optimizer.param_groups[0]["lr"]
        if not self.health.skips_step:
            self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.compute.follow()

    def _end_if_unhealthy(self, bad_step: int | None) -> None:
        """Save the state before a step whose gradient is not finite, and end the run."""
        if bad_step is None:
            return
        if self.scale is not None:
            self.scale.reset()
        self._save(bad_step, Meter(), None)
        self.finish_saving()
        raise self.health.error(bad_step)

    def _global_counts(self, batches: Sequence[Batch]) -> dict[str, Tensor | int]:
        """Predictions of each loss in the whole step, over all workers; at least 1."""
        mine = [self.objective.predictions(batch) for batch in batches]
        names = list(mine[0])
        counts = [sum(row[name] for row in mine) for name in names]
        if self.worker.shares == 1:
            return dict(zip(names, [max(1, count) for count in counts], strict=True))
        everywhere = self.worker.sum(to_device(torch.tensor(counts), self.worker.device))
        return dict(zip(names, everywhere.clamp(min=1), strict=True))

    def _looks_after(self, step: int) -> bool:
        """Whether there is something to do after a step that waits for the device."""
        every = 1 if self.worker.device.type == "cpu" else _GPU_STEPS_BETWEEN_LOOKS
        return (
            step % every == 0
            or self._reports_after(step)
            or self._evaluates_after(step)
            or self._saves_after(step)
        )

    def _reports_after(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step in (1, self.total_steps)

    def _evaluates_after(self, step: int) -> bool:
        if self.config.evaluate_at is not None:
            return step == self.total_steps or step in self.config.evaluate_at
        return self._is_due(step, self.config.evaluate_every, 10)

    def _saves_after(self, step: int) -> bool:
        return self._is_due(step, self.config.checkpoint_every, 5)

    def _is_due(self, step: int, every: int | None, times: int) -> bool:
        """Whether something done `every` so many steps, or `times` a run, is due; always at the end."""
        interval = every or max(1, self.total_steps // times)
        return step == self.total_steps or step % interval == 0

    def _resume(self) -> Restored:
        if self.checkpoints is None:
            return Restored()
        restored = self.checkpoints.restore(self.objective, self.optimizer)
        skip_to(self.schedule, restored.step)
        if self.scale is not None and restored.own and "loss_scale" in restored.own[0]:
            self.scale.load_state(restored.own[0]["loss_scale"])
        return restored

    def _resumed_meter(self) -> Meter:
        # Workers that split the model over one share of the batch measured the same.
        by_share = {own["share"]: own["meter"] for own in self.restored.own}
        return Meter.resumed(list(by_share.values()), self.worker)

    def _save(self, step: int, meter: Meter, validation_loss: float | None) -> None:
        if self.checkpoints is not None:
            own: Own = {"share": self.worker.share, "meter": meter.state()}
            if self.scale is not None:
                own["loss_scale"] = self.scale.state()
            self.checkpoints.save(step, self.objective, self.optimizer, own, validation_loss)

    def finish_saving(self) -> None:
        """Wait until the last state is saved whole."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
