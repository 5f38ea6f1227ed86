"""Losses in which the rows of a step are each other's negatives, whichever worker and micro-batch has them.

All vectors of a step are computed first, without what backward needs. The loss over them gives the gradient
of each vector, and each micro-batch, computed again, begins its backward pass with those: as much memory as
one micro-batch takes, and the loss of the whole batch (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup", section 3). A worker with a single micro-batch computes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from headway.data.batch import Batch
from headway.engine.model.cross_entropy import Term
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import PretrainingObjective, cross_entropy
from headway.engine.training.task_objectives import EmbeddingObjective, sentence_vectors

SCALE = 20.0
"""The factor by which sentence-transformers multiplies cosines before the softmax."""


class Contrastive(Protocol):
    """An objective in which the rows of a step are each other's negatives.

    Attributes:
        name: of the loss over the vectors.
        group_size: how many sequences a row has: anchor, positive, and negatives.
    """

    name: ClassVar[str]
    group_size: int

    def contrasted(self, batch: Batch) -> tuple[Tensor, dict[str, Term]]:
        """The vectors of a batch's sequences, float32, (sequences, hidden_size), and all other losses."""
        ...


def loss_among_all(vectors: Tensor, group_size: int, first: int, stop: int) -> Term:
    """The summed loss of some rows: each anchor's positive should be closer to it than all other texts.

    Henderson et al. 2017, section 4.4.

    Args:
        vectors: float32, shape (sequences, hidden_size): those of a whole step.
        group_size: how many sequences each row has.
        first: the first sequence of those rows.
        stop: one past their last.
    """
    # (sequences, hidden_size) → (groups, group_size, hidden_size)
    groups = vectors.unflatten(0, (-1, group_size))
    # (groups, group_size - 1, hidden_size) → ((group_size - 1) * groups, hidden_size): positives come first
    candidates = groups[:, 1:].transpose(0, 1).flatten(0, 1)
    positives = torch.arange(first // group_size, stop // group_size, device=vectors.device)
    anchors = groups[first // group_size : stop // group_size, 0]
    return cross_entropy(anchors @ candidates.T * SCALE, positives)


class ContrastiveObjective(EmbeddingObjective):
    """Each row's anchor and positive find each other among all texts of the step."""

    is_contrastive = True

    def loss(self, outputs: Tensor, batch: Batch | None = None) -> Term:
        """The loss of rows that are each other's only negatives."""
        return loss_among_all(outputs, self.group_size, 0, len(outputs))

    def contrasted(self, batch: Batch) -> tuple[Tensor, dict[str, Term]]:
        """See `Contrastive`; the other loss, if there is a teacher, is `distillation`."""
        vectors = self.outputs(batch)
        if self.distillation is None:
            return vectors, {}
        rows = self.count(batch)
        total = self.imitation(vectors, batch, rows)
        none = total.new_zeros((), dtype=torch.int64)
        return vectors, {"distillation": Term(total, none + rows, none)}


class ContrastivePretraining(PretrainingObjective):
    """Masked words, and beside them, parts of one text that find each other among all parts of the step.

    An encoder made for sentences forgets how to compare them while it only learns masked words. The parts
    are neighbours in a document, as in Giorgi et al. 2021, "DeCLUTR", section 3.
    """

    name: ClassVar[str] = "contrastive"
    is_contrastive = True
    group_size = 2

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model, pairs=None)

    @property
    def loss_names(self) -> list[str]:
        """See `Objective`."""
        return ["mlm", self.name]

    def predictions(self, batch: Batch) -> dict[str, int]:
        """One prediction for each masked token, and one for each row's two parts."""
        return super().predictions(batch) | {self.name: len(batch.lengths) // self.group_size}

    def outputs(self, batch: Batch) -> Tensor:
        """See `sentence_vectors`."""
        return sentence_vectors(*self.encode(batch))

    def contrasted(self, batch: Batch) -> tuple[Tensor, dict[str, Term]]:
        """See `Contrastive`; the other loss is `mlm`."""
        hidden, layout = self.encode(batch)
        vectors = sentence_vectors(hidden, layout)
        return vectors, {"mlm": self.word_term(hidden, batch)}

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Losses `mlm` and `contrastive`, of rows that are each other's only negatives."""
        vectors, terms = self.contrasted(batch)
        return terms | {self.name: loss_among_all(vectors, self.group_size, 0, len(vectors))}


class ContrastiveStep:
    """The losses of one step's micro-batches, each with the candidates of all of them, on all workers.

    Args:
        objective: whose loss it is.
        worker: this process; every worker makes one of these and calls it alike.
        sizes: sequences of the step on each data rank.
        counts: how many predictions each loss has in the step, over all workers.
    """

    def __init__(
        self,
        objective: Contrastive,
        worker: Worker,
        sizes: Sequence[int],
        counts: Mapping[str, Tensor | int],
    ) -> None:
        self._objective, self._worker, self._sizes, self._counts = objective, worker, sizes, counts
        self._losses: list[Tensor] = []
        self._gradients: Sequence[Tensor] = ()

    def see(self, vectors: Sequence[Tensor]) -> None:
        """Take the vectors of this worker's micro-batches, each of shape (sequences, hidden_size)."""
        all_vectors = self._worker.gather(torch.cat(list(vectors)), self._sizes).requires_grad_()
        mine = first = sum(self._sizes[: self._worker.data_rank])
        for part in vectors:
            term = loss_among_all(all_vectors, self._objective.group_size, first, first + len(part))
            total = term.total / self._counts[self._objective.name]
            total.backward()
            self._losses.append(total.detach())
            first += len(part)
        assert all_vectors.grad is not None
        gradients = self._worker.sum(all_vectors.grad)[mine:first]
        self._gradients = gradients.split([len(part) for part in vectors])

    def __call__(self, module: Any, batch: Batch, index: int) -> dict[str, Tensor]:
        """What micro-batch number `index` adds to the step's loss, and backward to all vectors' gradients."""
        vectors, others = module.contrasted(batch)
        if not self._losses:  # it is this worker's only one
            self.see([vectors.detach()])
        loss: Tensor = _WithGradient.apply(vectors, self._losses[index], self._gradients[index])
        weight = 1.0 if module.distillation is None else module.distillation.labels
        found = {name: term.total / self._counts[name] for name, term in others.items()}
        return found | {self._objective.name: loss * weight}


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
