"""The training loop: one for pretraining and fine-tuning, in one process or in many.

On a GPU the host only ever runs ahead: it knows all lengths and counts itself, and reads losses, norms and
whether they are finite when it reports, evaluates or saves, not between.

To add to the loop, write a hook: `trainer.add_hook(lambda info: print(info.step, info.metrics))`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from headway.config.training import TrainingConfig
from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.engine.checkpoint.checkpoints import Checkpoints, Restored
from headway.engine.hardware.device import use_tf32
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.loading.batch_processes import start_fork_server
from headway.engine.loading.loader import Loader, loader_processes
from headway.engine.optimizers.build import use_result_weights, use_training_weights
from headway.engine.parallel.worker import Worker
from headway.engine.training.flops import TrainingFlops
from headway.engine.training.hooks import Hook, Hooks, StepInfo
from headway.engine.training.meter import Meter, Metrics
from headway.engine.training.optimizer_step import OptimizerStep
from headway.engine.training.training_state import TrainingState, resumed_meter

Evaluator = Callable[[Any], Metrics]
"""Measures an objective on the validation rows; called on every worker, and answers the same on each."""

_GPU_STEPS_BETWEEN_LOOKS = 10
"""Steps after which workers with GPUs agree on whether to stop: each look waits for the GPU."""


class Stopped(RuntimeError):  # noqa: N818, it is no error
    """Training was asked to stop; its state is saved, and the same run continues from it."""


class Trainer:
    """Minimises an objective over batches, for a number of steps, from where a saved state left off.

    Attributes:
        objective: what is trained; its weights are float32, whatever is computed with.
        optimizer: over the objective's weights.
        state: both of them, and what else a saved state holds.
        start_step: steps that the saved state had behind it; 0 if there was none.
        total_steps: steps of the whole run.
        parts: that each global batch is dealt into, over all workers.
    """

    def __init__(
        self,
        objective: nn.Module,
        batches: BatchSource,
        config: TrainingConfig,
        *,
        worker: Worker | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Split the objective over the workers, and load the newest of the states, if there is one."""
        self.worker = worker or Worker()
        self.loader_processes = loader_processes(config.loader_processes, self.worker.device)
        if self.loader_processes:
            start_fork_server()
        self.objective: Any = objective.to(self.worker.device)
        self.flops = TrainingFlops.of(self.objective)
        self.batches = batches
        self.config = config
        self.checkpoints = checkpoints
        self.total_steps = config.total_steps(batches)
        max_data_size = max(config.max_data_size, self.worker.data_size)
        self.parts = max_data_size * config.gradient_accumulation
        use_tf32(config.tf32)
        self.state = TrainingState(self.objective, config, self.worker, self.total_steps)
        self.optimizer = self.state.optimizer
        self.restored = self.state.restore(checkpoints) if checkpoints is not None else Restored()
        self.start_step = self.restored.step
        self.optimizer_step = OptimizerStep(self.state, config, self.flops, self.parts, self.total_steps)
        self._meter = Meter()
        self._measures, self._hooks = Hooks(), Hooks()
        self._measures.add(self._measure_training, config.log_every, at=(1, self.total_steps))

    def add_hook(self, hook: Hook, every: int | None = None) -> None:
        """Call a hook after steps, in the order in which hooks were added.

        Metrics of a step are measured before its hooks run, and its state is saved after them: what a saved
        state has behind it has been reported.

        Args:
            hook: called on every worker alike.
            every: steps between two calls. If not set, it is called each time the host looks at the device:
                after every step on a CPU; on a GPU after every tenth, and whenever something is measured or
                saved. A smaller `every` makes the host wait for the GPU as often.
        """
        self._hooks.add(hook, every)

    def add_evaluation(self, evaluator: Evaluator, *, at_start: bool = True) -> None:
        """Measure the objective on the validation rows as often as the configuration says, and at the end.

        Args:
            evaluator: what measures it.
            at_start: also before the first step of a run that starts from scratch.
        """
        at = {self.total_steps} | ({0} if at_start else set())
        every = None
        if self.config.evaluate_at is not None:
            at |= set(self.config.evaluate_at)
        else:
            every = self._interval(self.config.evaluate_every, 10)
        self._measures.add(lambda info: info.metrics.update(self.evaluate(evaluator)), every, at)

    def run(self) -> None:
        """Train to the last step, measuring, calling hooks and saving on the way.

        The objective's weights are the result's from the last call of the hooks on.

        Raises:
            TrainingError: a gradient that is not finite, in float16 one that no loss scale makes finite; the
                state before that step is saved.
            Stopped: a hook of some worker asked to stop.
        """
        if self.start_step == 0 and self._are_due(0):
            self._call_hooks(0)
        self._meter = resumed_meter(self.restored, self.worker)
        validation_loss = self.restored.metric
        started = time.perf_counter()
        with self._loader() as loader:
            for index, micro_batches, on_device in loader:
                self.train_step(index, micro_batches, self._meter, on_device)
                step = index + 1
                if not self._looks_after(step):
                    continue
                synchronise(self.worker.device)
                self._meter.seconds += time.perf_counter() - started
                self.check_health()
                info = self._call_hooks(step)
                validation_loss = info.metrics.get("validation_loss", validation_loss)
                stopping = self.worker.any(info.stop)
                if stopping or self._saves_after(step):
                    self._save(step, self._meter, validation_loss)
                if stopping:
                    self.finish_saving()
                    raise Stopped(f"stopped after step {step}, whose state is saved")
                started = time.perf_counter()
        self.finish_saving()

    def _loader(self) -> Loader:
        worker = self.worker
        make = partial(
            self.batches.micro_batches, rank=worker.data_rank, world_size=worker.data_size, parts=self.parts
        )
        first, stop = self.start_step, self.total_steps
        return Loader(make, first, stop, device=worker.device, processes=self.loader_processes)

    def train_step(
        self,
        step: int,
        micro_batches: Sequence[Batch],
        meter: Meter,
        on_device: Sequence[Batch] | None = None,
    ) -> None:
        """One optimizer step, the one after `step` others, on this worker's part of its batch.

        Args:
            step: counted from 0.
            micro_batches: on the host.
            meter: counts what was done.
            on_device: the same ones where they are computed, if they have been copied there already.

        Raises:
            TrainingError: its gradient is known already not to be finite.
        """
        self._end_if_unhealthy(self.optimizer_step.run(step, micro_batches, meter, on_device))

    def check_health(self) -> None:
        """Wait for the device, and raise a TrainingError if a gradient since the last look was not finite."""
        self._end_if_unhealthy(self.optimizer_step.health.look())

    def _end_if_unhealthy(self, bad_step: int | None) -> None:
        """Save the state before a step whose gradient is not finite, and end the run."""
        if bad_step is None:
            return
        if self.state.scale is not None:
            self.state.scale.reset()
        self._save(bad_step, Meter(), None)
        self.finish_saving()
        raise self.optimizer_step.health.error(bad_step)

    def evaluate(self, evaluator: Evaluator) -> Metrics:
        """What an evaluator measures of the weights that would be the result now."""
        compute = self.optimizer_step.compute
        use_result_weights(self.optimizer)
        compute.follow()
        metrics = evaluator(compute.module.eval())
        use_training_weights(self.optimizer)
        compute.follow()
        return metrics

    def _measure_training(self, info: StepInfo) -> None:
        info.metrics.update(self._meter.metrics(self.worker, self.state.dtype))
        if self.state.scale is not None:
            info.metrics["loss_scale"] = float(self.state.scale.value)
        self._meter = Meter()

    def _call_hooks(self, step: int) -> StepInfo:
        """Measure what is due after a step, and call the hooks."""
        info = StepInfo(step, self.total_steps)
        self._measures.run(info)
        if step == self.total_steps:
            use_result_weights(self.optimizer)
        self._hooks.run(info)
        return info

    def _looks_after(self, step: int) -> bool:
        """Whether there is something to do after a step that waits for the device."""
        every = 1 if self.worker.device.type == "cpu" else _GPU_STEPS_BETWEEN_LOOKS
        return step % every == 0 or self._are_due(step) or self._saves_after(step)

    def _are_due(self, step: int) -> bool:
        return self._measures.are_due(step) or self._hooks.are_due(step)

    def _saves_after(self, step: int) -> bool:
        return step == self.total_steps or step % self._interval(self.config.checkpoint_every, 5) == 0

    def _interval(self, every: int | None, times: int) -> int:
        """Steps between what is done `every` so many steps, or `times` a run if that is not set."""
        return every or max(1, self.total_steps // times)

    def _save(self, step: int, meter: Meter, validation_loss: float | None) -> None:
        if self.checkpoints is not None:
            self.state.save(self.checkpoints, step, meter, validation_loss)

    def finish_saving(self) -> None:
        """Wait until the last state is saved whole."""
        if self.checkpoints is not None:
            self.checkpoints.wait()
