"""Losses in which the rows of a step are each other's negatives, whichever worker and micro-batch has them.

All vectors of a step are computed first, without what backward needs. The loss over them gives the gradient
of each vector, and each micro-batch, computed again, begins its backward pass with those: as much memory as
one micro-batch takes, and the loss of the whole batch (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", section 3). A worker with a single micro-batch computes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.data.batch import Batch
from headway.engine.model.cross_entropy import Term
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import cross_entropy
from headway.engine.training.task_objectives import EmbeddingObjective

SCALE = 20.0
"""The factor by which sentence-transformers multiplies cosines before the softmax."""


class ContrastiveObjective(EmbeddingObjective):
    """Each anchor's positive should be closer to it than all other texts of the batch.

    Henderson et al. 2017, section 4.4.
    """

    is_contrastive = True

    def loss(self, outputs: Tensor, batch: Batch | None = None) -> Term:
        """The loss of rows that are each other's only negatives."""
        return self.loss_of(outputs, 0, len(outputs))

    def loss_of(self, vectors: Tensor, first: int, stop: int) -> Term:
        """The summed loss of some rows among all.

        Args:
            vectors: float32, shape (sequences, hidden_size): those of a whole step.
            first: the first sequence of those rows.
            stop: one past their last.
        """
        # (sequences, hidden_size) → (groups, group_size, hidden_size)
        groups = vectors.unflatten(0, (-1, self.group_size))
        # (groups, group_size - 1, hidden_size) → ((group_size - 1) * groups, hidden_size): positives come
        # first
        candidates = groups[:, 1:].transpose(0, 1).flatten(0, 1)
        positives = torch.arange(first // self.group_size, stop // self.group_size, device=vectors.device)
        anchors = groups[first // self.group_size : stop // self.group_size, 0]
        return cross_entropy(anchors @ candidates.T * SCALE, positives)


class ContrastiveStep:
    """The losses of one step's micro-batches, each with the candidates of all of them, on all workers.

    Args:
        objective: whose loss it is.
        worker: this process; every worker makes one of these and calls it alike.
        sizes: sequences of the step on each data rank.
        count: rows of the step, over all workers.
    """

    def __init__(
        self, objective: ContrastiveObjective, worker: Worker, sizes: Sequence[int], count: Tensor | int
    ) -> None:
        self._objective, self._worker, self._sizes, self._count = objective, worker, sizes, count
        self._losses: list[Tensor] = []
        self._gradients: Sequence[Tensor] = ()

    def see(self, vectors: Sequence[Tensor]) -> None:
        """Take the vectors of this worker's micro-batches, each of shape (sequences, hidden_size)."""
        all_vectors = self._worker.gather(torch.cat(list(vectors)), self._sizes).requires_grad_()
        mine = first = sum(self._sizes[: self._worker.data_rank])
        for part in vectors:
            total = self._objective.loss_of(all_vectors, first, first + len(part)).total / self._count
            total.backward()
            self._losses.append(total.detach())
            first += len(part)
        assert all_vectors.grad is not None
        gradients = self._worker.sum(all_vectors.grad)[mine:first]
        self._gradients = gradients.split([len(part) for part in vectors])

    def __call__(self, module: Any, batch: Batch, index: int) -> dict[str, Tensor]:
        """What micro-batch number `index` adds to the step's loss, and backward to all vectors' gradients."""
        vectors = module.outputs(batch)
        if not self._losses:  # it is this worker's only one
            self.see([vectors.detach()])
        loss: Tensor = _WithGradient.apply(vectors, self._losses[index], self._gradients[index])
        losses = {self._objective.name: loss}
        if module.distillation is None:
            return losses
        imitation = module.imitation(vectors, batch, module.count(batch)) / self._count
        return {self._objective.name: loss * module.distillation.labels, "distillation": imitation}


class _WithGradient(torch.autograd.Function):
    """A loss, computed elsewhere, of vectors whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * factor, None, None
