"""The training loop: one for pretraining and fine-tuning, in one process or in many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headway.config.training import TrainingConfig
from headway.data.batches import Batch, BatchSource
from headway.data.sampling import derived_seed, parts_of
from headway.engine.checkpoint.checkpoints import Checkpoints, Restored
from headway.engine.hardware.device import compute_dtype
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.model.compilation import checkpoint_activations, compile_layers
from headway.engine.model.cross_entropy import Term
from headway.engine.parallel.pipeline import Pipeline, Weigh
from headway.engine.parallel.worker import Worker, clip_gradients, synchronise_only_if
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.meter import Meter, Metrics
from headway.engine.training.optimizers import build_optimizer, use_result_weights, use_training_weights
from headway.engine.training.precision import ComputeCopy
from headway.engine.training.prefetch import prefetched
from headway.engine.training.schedules import build_schedule, skip_to

Report = Callable[[int, Metrics], None]
"""Called with the number of steps done and what was measured, on every worker alike."""
Evaluator = Callable[[Any], Metrics]
"""Measures an objective on the validation rows; called on every worker, and answers the same on each."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number any more."""


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
        self.total_steps = config.total_steps(batches.rows)
        most_shares = max(config.most_shares, self.worker.shares)
        self.parts = most_shares * config.accumulation
        self.dtype = compute_dtype(config.precision, self.worker.device)
        self.pipeline: Pipeline | None = None
        if self.worker.stages > 1:
            self.pipeline = Pipeline(self.objective, self.worker, self.dtype)
        else:
            self.worker.split(self.objective, self.dtype)
        self.optimizer = build_optimizer(self.objective, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.total_steps)
        self.restored = self._resume()
        self.start_step = self.restored.step
        if config.activation_checkpointing:
            checkpoint_activations(self.objective)
        is_split = self.worker.mesh is not None  # then it casts by itself
        self.compute = ComputeCopy(self.pipeline or self.objective, torch.float32 if is_split else self.dtype)
        if config.compile:
            compile_layers(self.compute.module)
        self.replica = self.worker.replicate(self.compute.module)

    def run(self) -> None:
        """Train to the last step, reporting, evaluating and saving on the way.

        The objective's weights are the result's from the last report on.

        Raises:
            TrainingError: a gradient that is not finite; the state before that step is saved.
            Stopped: some worker was asked to stop.
        """
        if self.start_step == 0 and self.measure_start:
            self.report(0, self.evaluate())
        meter = self._resumed_meter()
        validation_loss = self.restored.metric
        started = time.perf_counter()
        for index, micro_batches in prefetched(self._micro_batches, self.start_step, self.total_steps):
            self.train_step(index, micro_batches, meter)
            synchronise(self.worker.device)
            meter.seconds += time.perf_counter() - started
            step = index + 1
            metrics: Metrics = {}
            if step % self.config.log_every == 0 or step in (1, self.total_steps):
                metrics |= meter.metrics(self.worker, self.dtype)
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
            if stopping or self._is_due(step, self.config.checkpoint_every, 5):
                self._save(step, meter, validation_loss)
            if stopping:
                self.finish_saving()
                raise Stopped(f"stopped after step {step}, whose state is saved")
            started = time.perf_counter()
        self.finish_saving()

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

    def _micro_batches(self, step: int) -> list[Batch]:
        worker = self.worker
        return self.batches.micro_batches(step, worker.share, worker.shares, self.parts)

    def train_step(self, step: int, micro_batches: list[Batch], meter: Meter) -> None:
        """One optimizer step, the one after `step` others, on this worker's share of its batch."""
        self.compute.module.train()
        counts = self._global_counts(micro_batches)
        # Dropout, too, is a function of (seed, step, part): a resumed or resized run draws the same.
        parts = parts_of(self.worker.share, self.worker.shares, self.parts)
        seeds = [derived_seed(self.config.seed, step, part) for part in parts]
        batches = [batch.to(self.worker.device) for batch in micro_batches]

        def weigh(terms: dict[str, Term]) -> dict[str, Tensor]:
            return {name: term.total / max(1, counts[name]) for name, term in terms.items()}

        backward = self._backward if self.pipeline is None else self.pipeline.backward
        # Gradients are averaged over the shares; the loss is a mean over all of them, hence the factor.
        meter.add(backward(batches, seeds, weigh, self.worker.shares), batches, self.flops)
        self._update(step, micro_batches, meter)

    def _backward(
        self, batches: Sequence[Batch], seeds: Sequence[int], weigh: Weigh, scale: float
    ) -> dict[str, Tensor]:
        """Run micro-batches forward and backward, one after the other; see `Pipeline.backward`."""
        sums: dict[str, Tensor] = {}
        for index, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            torch.manual_seed(seed)
            is_last = index == len(batches) - 1
            with synchronise_only_if(self.replica, wanted=is_last):
                losses = weigh(self.replica(batch))
                (torch.stack(list(losses.values())).sum() * scale).backward()
            if is_last or self.worker.world_size == 1:
                self.compute.collect_gradients()
            sums = {name: sums.get(name, 0.0) + loss.detach() for name, loss in losses.items()}
        return sums

    def _update(self, step: int, micro_batches: list[Batch], meter: Meter) -> None:
        """Clip the gradients, move the weights, and bring the compute copy up to them."""
        borrowed = self.pipeline.borrowed if self.pipeline is not None else []
        most = self.config.max_grad_norm
        meter.gradient_norm = clip_gradients(self.objective, most, self.worker, borrowed)
        if not math.isfinite(meter.gradient_norm):
            self._save(step, Meter(), None)
            self.finish_saving()
            rows = torch.cat([batch.row_ids for batch in micro_batches]).tolist()
            raise TrainingError(
                f"the gradient of step {step + 1} is not finite; try a lower learning_rate "
                f"(worker {self.worker.rank}, rows {rows[:16]}; the state before the step is saved)"
            )
        meter.steps += 1
        meter.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.compute.follow()

    def _global_counts(self, batches: list[Batch]) -> dict[str, int]:
        """Predictions of each loss in the whole step, over all workers."""
        mine = [self.objective.predictions(batch) for batch in batches]
        names = list(mine[0])
        counts = [sum(row[name] for row in mine) for name in names]
        if self.worker.shares > 1:
            counts = self.worker.sum(torch.tensor(counts, device=self.worker.device)).tolist()
        return dict(zip(names, counts, strict=True))

    def _evaluates_after(self, step: int) -> bool:
        if self.config.evaluate_at is not None:
            return step == self.total_steps or step in self.config.evaluate_at
        return self._is_due(step, self.config.evaluate_every, 10)

    def _is_due(self, step: int, every: int | None, times: int) -> bool:
        """Whether something done `every` so many steps, or `times` a run, is due; always at the end."""
        interval = every or max(1, self.total_steps // times)
        return step == self.total_steps or step % interval == 0

    def _resume(self) -> Restored:
        if self.checkpoints is None:
            return Restored()
        restored = self.checkpoints.restore(self.objective, self.optimizer)
        skip_to(self.schedule, restored.step)
        return restored

    def _resumed_meter(self) -> Meter:
        # Workers that split the model over one share of the batch measured the same.
        by_share = {own["share"]: own["meter"] for own in self.restored.own}
        return Meter.resumed(list(by_share.values()), self.worker)

    def _save(self, step: int, meter: Meter, validation_loss: float | None) -> None:
        if self.checkpoints is not None:
            own = {"share": self.worker.share, "meter": meter.state()}
            self.checkpoints.save(step, self.objective, self.optimizer, own, validation_loss)

    def finish_saving(self) -> None:
        """Wait until the last state is saved whole."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
