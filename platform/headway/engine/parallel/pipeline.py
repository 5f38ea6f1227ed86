"""Train a model whose layers are on several workers, with several micro-batches on their way at once.

This uses torch.distributed.pipelining with the schedule 1F1B (Narayanan et al. 2019, "PipeDream", section
3.2): once the pipeline is full, each stage runs a micro-batch forward, and then an earlier one backward. So a
stage keeps activations of no more micro-batches than there are stages after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor

from headway.data.batches import Batch
from headway.data.sampling import derived_seed
from headway.engine.model.cross_entropy import Term
from headway.engine.parallel.stages import keep_stage, names_on_both_ends
from headway.engine.parallel.worker import Worker

Finish = Callable[[Any, Batch], Tensor]
"""What the last stage computes from its objective and a batch."""
Losses = Callable[[Any, Batch, int], dict[str, Tensor]]
"""What a module's losses on a micro-batch, the n-th of the step, add to the step's losses."""


class ForwardPass(NamedTuple):
    """One forward pass through a stage.

    Attributes:
        batch: the same on every stage.
        finish: what the last stage computes.
        capacity: how many rows hidden states are padded to between stages, no fewer than the batch's tokens.
        seed: of random numbers; None if none are drawn.
    """

    batch: Batch
    finish: Finish
    capacity: int
    seed: int | None = None


class StageModule(nn.Module):
    """One worker's part of an objective.

    Attributes:
        objective: without the parts of its model that other stages compute.
        passes: the passes that `forward` runs, by index, since torch's schedules only pass tensors on.
    """

    def __init__(self, objective: Any, number: int, count: int, dtype: torch.dtype) -> None:
        super().__init__()
        keep_stage(objective.model, number, count)
        self.objective = objective
        self.is_first, self.is_last = number == 0, number == count - 1
        self.dtype = dtype
        self.passes: Sequence[ForwardPass] = ()

    def forward(self, received: Tensor | None = None, *, index: Tensor) -> Tensor:
        """Run a micro-batch forward.

        Args:
            received: hidden states of the previous stage, shape (capacity, hidden_size); None in the first.
            index: int64, shape (1,): the index of the pass.

        Returns:
            Hidden states for the next stage, shape (capacity, hidden_size); in the last, what `finish`
            returns.
        """
        forward_pass = self.passes[int(index)]
        if forward_pass.seed is not None:
            torch.manual_seed(forward_pass.seed)
        encoder, batch = self.objective.model.base_model, forward_pass.batch
        if received is not None:
            encoder.embeddings.states = received[: len(batch.input_ids)]
        if self.is_last:
            return forward_pass.finish(self.objective, batch)
        states, _ = self.objective.encode(batch)
        return F.pad(states, (0, 0, 0, forward_pass.capacity - len(states))).to(self.dtype)


class Pipeline(nn.Module):
    """An objective over several workers, all of which call every method with the same batches.

    Attributes:
        unit: that of the objective, if it has one.
        is_contrastive: that of the objective.
    """

    def __init__(self, objective: Any, worker: Worker, dtype: torch.dtype) -> None:
        super().__init__()
        assert worker.mesh is not None
        self._group = worker.mesh["pipeline"].get_group()
        self._number, self._count = worker.stage, worker.stages
        self._device = worker.device
        self._width = objective.model.config.hidden_size
        self._shared = names_on_both_ends(objective.model)
        self.unit = getattr(objective, "unit", None)
        self.is_contrastive = objective.is_contrastive
        self.stage = StageModule(objective, self._number, self._count, dtype)
        worker.split(self.stage, dtype)
        self._capacity = 0
        self._schedule: Schedule1F1B

    def backward(
        self,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        losses: Losses,
        scale: float,
    ) -> dict[str, Tensor]:
        """Run a step's micro-batches forward and backward.

        Args:
            batches: no fewer than there are stages.
            seeds: one for each micro-batch; those of later stages are derived from them.
            losses: see `Losses`.
            scale: factor on the sum of all losses before backward.

        Returns:
            The step's losses by name, float32 scalars, on every worker.
        """
        names = list(self.stage.objective.predictions(batches[0]))
        sums = torch.zeros(len(names), device=self._device)

        def finish(objective: Any, batch: Batch, number: int) -> Tensor:
            found = losses(objective, batch, number)
            row = torch.stack([found[name] for name in names])
            sums.add_(row.detach())
            return row.sum() * scale

        # After an evaluation, weights are still gathered, unless a new schedule has released them. Then only
        # some of the workers that must gather them together would.
        for part in self.stage.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        capacity = max(len(batch.input_ids) for batch in batches)
        schedule = self._schedule_for(len(batches), capacity)
        self.stage.passes = [
            ForwardPass(batch, partial(finish, number=number), self._capacity, self._own_seed(seed))
            for number, (batch, seed) in enumerate(zip(batches, seeds, strict=True))
        ]
        index = torch.arange(len(batches))
        schedule.step(index=index, target=index, return_outputs=False)
        for weight in self._ends():
            self._sum_gradients(weight)
        dist.broadcast(sums, group=self._group, group_src=self._count - 1)
        return dict(zip(names, sums, strict=True))

    def _own_seed(self, seed: int) -> int:
        return derived_seed(seed, self._number) if self._number else seed

    def _schedule_for(self, micro_batches: int, capacity: int) -> Schedule1F1B:
        """A schedule for hidden states of up to `capacity` tokens; made again if more are needed."""
        if capacity <= self._capacity:
            return self._schedule
        self._capacity = capacity
        states = torch.empty(capacity, self._width, dtype=self.stage.dtype, device="meta", requires_grad=True)
        stage = PipelineStage(
            self.stage,
            self._number,
            self._count,
            self._device,
            input_args=() if self.stage.is_first else states,
            output_args=torch.empty((), device="meta", requires_grad=True) if self.stage.is_last else states,
            group=self._group,
        )
        self._schedule = Schedule1F1B(
            stage, micro_batches, loss_fn=lambda loss, index: loss, scale_grads=False
        )
        return self._schedule

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The objective's losses on a batch, without gradients, on every worker."""

        def finish(objective: Any, batch: Batch) -> Tensor:
            return torch.stack(
                [torch.stack([x.double() for x in term]) for term in objective(batch).values()]
            )

        rows = self._through(batch, finish)
        names = self.stage.objective.predictions(batch)
        return {name: Term(*row) for name, row in zip(names, rows, strict=True)}

    @property
    def loss_names(self) -> list[str]:
        """Names of the objective's losses."""
        return self.stage.objective.loss_names

    def outputs(self, batch: Batch, seed: int | None = None) -> Tensor:
        """The model's outputs for a batch, without gradients, on every worker; see `TaskObjective`.

        With the seed of a micro-batch, they are those that `backward` is going to compute.
        """
        return self._through(batch, lambda objective, batch: objective.outputs(batch), seed)

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """See `TaskObjective`."""
        return self.stage.objective.loss(outputs, batch)

    def _through(self, batch: Batch, finish: Finish, seed: int | None = None) -> Tensor:
        """Pass a batch through all stages, one after another."""
        tokens = len(batch.input_ids)
        self.stage.passes = [
            ForwardPass(batch, finish, tokens, None if seed is None else self._own_seed(seed))
        ]
        received = None
        if not self.stage.is_first:
            received = torch.empty(tokens, self._width, dtype=self.stage.dtype, device=self._device)
            dist.recv(received, group=self._group, group_src=self._number - 1)
        made = self.stage(received, index=torch.zeros(1, dtype=torch.int64))
        if not self.stage.is_last:
            dist.send(made, group=self._group, group_dst=self._number + 1)
        box = [made.cpu() if self.stage.is_last else None]
        dist.broadcast_object_list(box, group=self._group, group_src=self._count - 1)
        assert box[0] is not None
        return box[0].to(self._device)

    def _ends(self) -> list[nn.Parameter]:
        """Weights of this worker that are on the first and on the last stage."""
        if not (self.stage.is_first or self.stage.is_last):
            return []
        return [self.stage.objective.model.get_parameter(name) for name in self._shared]

    @property
    def borrowed(self) -> list[nn.Parameter]:
        """Weights of this worker that the first stage counts."""
        return [] if self.stage.is_first else self._ends()

    def _sum_gradients(self, weight: nn.Parameter) -> None:
        """Sum a weight's gradients of both ends, so that the optimizer does the same to both copies."""
        if not isinstance(weight.grad, DTensor):
            return  # frozen
        mine = weight.grad.to_local()
        other = torch.empty_like(mine)
        peer = self._count - 1 if self.stage.is_first else 0
        exchange = [
            dist.P2POp(dist.isend, mine, group=self._group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=self._group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        mine += other  # a + b and b + a have the same bits
