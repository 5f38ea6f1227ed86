"""The training loop: one for pretraining and fine-tuning, in one process or in many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from headway.config import TrainingConfig
from headway.data.batches import Batch, BatchSource
from headway.data.sampling import derived_seed
from headway.engine.device import compute_dtype, precision_context
from headway.engine.objectives import Term
from headway.engine.optimizers import build_optimizer, build_schedule
from headway.engine.parallel import Worker, synchronise_only_if
from headway.engine.state import restore_state, save_state

Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]
"""Called with the number of steps done and what was measured, on every worker alike."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number any more."""


@dataclass
class Meter:
    """What this worker measured since the last report."""

    losses: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    gradient_norm: float = 0.0
    learning_rate: float = 0.0


class Trainer:
    """Minimises an objective over batches, for a number of steps, from where a saved state left off.

    Attributes:
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
        state_folder: Path | None = None,
        report: Report = lambda step, metrics: None,
    ) -> None:
        self.worker = worker or Worker()
        self.objective = objective.to(self.worker.device)
        self.batches = batches
        self.validation = validation
        self.config = config
        self.state_folder = state_folder
        self.report = report
        self.total_steps = config.total_steps(batches.rows)
        self.dtype = compute_dtype(config.precision, self.worker.device)
        self.optimizer = build_optimizer(self.objective, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.schedule, self.total_steps)
        self.start_step = self._resume()
        self.replica = self.worker.replicate(self.objective)

    def run(self) -> None:
        """Train to the last step, reporting, evaluating and saving on the way.

        Raises:
            TrainingError: a gradient that is not finite.
        """
        step = self.start_step
        if step == 0:
            self.report(0, self.evaluate())
        meter = Meter()
        while step < self.total_steps:
            started = time.perf_counter()
            self._train_step(step, meter)
            meter.seconds += time.perf_counter() - started
            step += 1
            metrics: Metrics = {}
            if step % self.config.log_every == 0 or step in (1, self.total_steps):
                metrics |= self._drain(meter)
                meter = Meter()
            if self._is_due(step, self.config.evaluate_every, 10):
                metrics |= self.evaluate()
            if metrics:
                self.report(step, metrics)
            if self._is_due(step, self.config.checkpoint_every, 5):
                self._save(step)

    def evaluate(self) -> Metrics:
        """Mean losses and accuracies over the validation rows; nothing where there are none."""
        if self.validation is None:
            return {}
        sums: dict[str, Tensor] = {}
        self.objective.eval()
        shares = self.validation.in_order(self.worker.rank, self.worker.world_size, self.config.batch_size)
        with torch.inference_mode(), precision_context(self.dtype, self.worker.device):
            for batch in shares:
                for name, term in self.objective(batch.to(self.worker.device)).items():
                    row = torch.stack([part.detach().double() for part in term])
                    sums[name] = sums.get(name, torch.zeros_like(row)) + row
        return self._means(sums)

    def _means(self, sums: dict[str, Tensor]) -> Metrics:
        metrics: Metrics = {}
        for name, row in sums.items():
            total, count, correct = self.worker.sum(row.clone()).tolist()
            metrics[f"validation_{name}_loss"] = total / max(count, 1)
            metrics[f"validation_{name}_accuracy"] = correct / max(count, 1)
        metrics["validation_loss"] = sum(v for k, v in metrics.items() if k.endswith("_loss"))
        return metrics

    def _train_step(self, step: int, meter: Meter) -> None:
        config, worker = self.config, self.worker
        # Dropout, too, is a function of (seed, step, rank): a resumed run draws what it would have drawn.
        torch.manual_seed(derived_seed(config.seed, step, worker.rank))
        self.objective.train()
        batches = self.batches.micro_batches(step, worker.rank, worker.world_size, config.accumulation)
        counts = self._global_counts(batches)
        for index, batch in enumerate(batches):
            with synchronise_only_if(self.replica, wanted=index == len(batches) - 1):
                self._backward(batch.to(worker.device), counts, meter)
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), config.max_grad_norm)
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient of step {step + 1} is not finite; try a lower learning_rate")
        meter.steps += 1
        meter.gradient_norm = float(norm)
        meter.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _global_counts(self, batches: list[Batch]) -> tuple[int, int]:
        """Masked tokens and sequences of the whole step, over all workers."""
        masked = sum(len(batch.masked_labels) for batch in batches)
        sequences = sum(len(batch.labels) for batch in batches)
        counts = torch.tensor([masked, sequences], device=self.worker.device)
        masked, sequences = self.worker.sum(counts).tolist()
        return masked, sequences

    def _backward(self, batch: Batch, counts: tuple[int, int], meter: Meter) -> None:
        with precision_context(self.dtype, self.worker.device):
            terms: dict[str, Term] = self.replica(batch)
        shares = {
            name: term.total / max(1, counts[0] if name == "mlm" else counts[1])
            for name, term in terms.items()
        }
        # Replicas average their gradients; the loss is a mean over all of them, hence the factor.
        loss = torch.stack(list(shares.values())).sum() * self.worker.world_size
        loss.backward()
        for name, share in shares.items():
            meter.losses[f"{name}_loss"] = meter.losses.get(f"{name}_loss", 0.0) + float(share.detach())
        meter.tokens += len(batch.input_ids)

    def _drain(self, meter: Meter) -> Metrics:
        """What the meter gathered, over all workers; a loss is the mean over the steps measured."""
        names = sorted(meter.losses)
        row = torch.tensor([*(meter.losses[name] for name in names), meter.tokens], dtype=torch.float64)
        *losses, tokens = self.worker.sum(row.to(self.worker.device)).tolist()
        metrics = {name: loss / meter.steps for name, loss in zip(names, losses, strict=True)}
        return metrics | {
            "gradient_norm": meter.gradient_norm,
            "learning_rate": meter.learning_rate,
            "tokens_per_second": tokens / meter.seconds,
        }

    def _is_due(self, step: int, every: int | None, times: int) -> bool:
        """Whether something done `every` so many steps, or `times` a run, is due; always at the end."""
        interval = every or max(1, self.total_steps // times)
        return step == self.total_steps or step % interval == 0

    def _resume(self) -> int:
        if self.state_folder is None:
            return 0
        step = restore_state(self.state_folder, self.objective, self.optimizer, self.worker.device)
        for _ in range(step):
            self.schedule.step()
        return step

    def _save(self, step: int) -> None:
        if self.state_folder is not None and self.worker.rank == 0:
            save_state(self.state_folder, step, self.objective, self.optimizer)
