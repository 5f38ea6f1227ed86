"""The training loop, the same for pretraining and fine-tuning, in one process or in many.

The host runs ahead of a GPU: it knows all lengths and counts, and reads losses, norms and whether they are
finite only when it reports, evaluates or saves.

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
from headway.engine.checkpoint.checkpoints import CheckpointError, Checkpoints, Restored
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
"""Measures an objective on the validation rows; called on every worker, and returns the same on each."""

_GPU_STEPS_BETWEEN_LOOKS = 10
"""Steps between two looks at a GPU, each of which waits for it."""


class Stopped(RuntimeError):  # noqa: N818, it is no error
    """A hook asked to stop; the state is saved, and the same run can continue from it."""


class Trainer:
    """Minimises an objective over batches for a number of steps, starting from the newest saved state.

    Attributes:
        objective: the module to train; its weights are float32, whatever dtype is computed in.
        optimizer: of the objective's weights.
        state: both of them, and the rest of what a checkpoint saves.
        start_step: steps that were done when the state was saved; 0 if there is none.
        total_steps: steps of the whole run.
        parts: how many parts each global batch is dealt into, over all workers.
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
        """Split the objective over the workers, and load the newest saved state, if there is one."""
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
        use_tf32(config.tf32)
        self.state = TrainingState(self.objective, config, self.worker, self.total_steps)
        self.optimizer = self.state.optimizer
        self.restored = self.state.restore(checkpoints) if checkpoints is not None else Restored()
        self.start_step = self.restored.step
        self.parts = self.state.parts
        self.optimizer_step = OptimizerStep(self.state, config, batches, self.flops, self.parts)
        self._meter = Meter()
        self._measures, self._hooks = Hooks(), Hooks()
        self._measures.add(self._measure_training, config.log_every, at=(1, self.total_steps))

    def add_hook(self, hook: Hook, every: int | None = None) -> None:
        """Call a hook after steps, in the order in which hooks are added.

        A step's metrics are measured before its hooks are called, and its state is saved after them. So all
        that was measured up to a saved state has been reported.

        Args:
            hook: called on every worker alike.
            every: steps between two calls. If not set, the hook is called whenever the host looks at the
                device: after every step on a CPU, and on a GPU after every tenth, and whenever something is
                measured or saved. A smaller `every` makes the host wait for the GPU that often.
        """
        self._hooks.add(hook, every)

    def add_evaluation(self, evaluator: Evaluator, *, at_start: bool = True) -> None:
        """Evaluate the objective as often as the configuration says, and after the last step.

        Args:
            evaluator: measures the objective.
            at_start: whether to evaluate before the first step too, in a run that starts from scratch.
        """
        at = {self.total_steps} | ({0} if at_start else set())
        every = None
        if self.config.evaluate_at is not None:
            at |= set(self.config.evaluate_at)
        else:
            every = self._interval(self.config.evaluate_every, 10)
        self._measures.add(lambda info: info.metrics.update(self.evaluate(evaluator)), every, at)

    def run(self) -> None:
        """Train to the last step, and measure, call hooks and save on the way.

        From the last call of the hooks, the objective has the weights that are the result.

        Raises:
            TrainingError: a gradient is not finite, or in float16 no loss scale makes it finite; the state
                from before that step is saved.
            Stopped: a hook on some worker asked to stop.
            CheckpointError: it did, and its state could not be saved; or several in a row could not be.
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
                    if not self.finish_saving():
                        raise CheckpointError(f"stopped after step {step}, whose state could not be saved")
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
        """Take the optimizer step after `step` others, on this worker's part of the batch.

        Args:
            step: counted from 0.
            micro_batches: on the host.
            meter: adds up losses, tokens and FLOPs.
            on_device: the same micro-batches on the device, if they have been copied already.

        Raises:
            TrainingError: the gradient is not finite, and the optimizer cannot skip steps by itself.
        """
        self._end_if_unhealthy(self.optimizer_step.run(step, micro_batches, meter, on_device))

    def check_health(self) -> None:
        """Wait for the device, and raise a TrainingError if a gradient since the last look is not finite."""
        self._end_if_unhealthy(self.optimizer_step.health.look())

    def _end_if_unhealthy(self, bad_step: int | None) -> None:
        """Save the state from before a step whose gradient is not finite, and end the run."""
        if bad_step is None:
            return
        if self.state.scale is not None:
            self.state.scale.reset()
        self._save(bad_step, Meter(), None)
        self.finish_saving()
        raise self.optimizer_step.health.error(bad_step)

    def evaluate(self, evaluator: Evaluator) -> Metrics:
        """What an evaluator measures with the weights that would be the result now."""
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
        """Take the measurements that are due after a step, and call the hooks."""
        info = StepInfo(step, self.total_steps)
        self._measures.run(info)
        if step == self.total_steps:
            use_result_weights(self.optimizer)
        self._hooks.run(info)
        return info

    def _looks_after(self, step: int) -> bool:
        """Whether the host looks at the device after a step, and waits for it."""
        every = 1 if self.worker.device.type == "cpu" else _GPU_STEPS_BETWEEN_LOOKS
        return step % every == 0 or self._are_due(step) or self._saves_after(step)

    def _are_due(self, step: int) -> bool:
        return self._measures.are_due(step) or self._hooks.are_due(step)

    def _saves_after(self, step: int) -> bool:
        return step == self.total_steps or step % self._interval(self.config.checkpoint_every, 5) == 0

    def _interval(self, every: int | None, times: int) -> int:
        """The interval of what is done every `every` steps, or if that is not set, `times` in a run."""
        return every or max(1, self.total_steps // times)

    def _save(self, step: int, meter: Meter, validation_loss: float | None) -> None:
        if self.checkpoints is not None:
            self.state.save(self.checkpoints, step, meter, validation_loss)

    def finish_saving(self) -> bool:
        """Wait until the last state is completely saved, or given up; whether it is saved."""
        return self.checkpoints is None or self.checkpoints.wait()
