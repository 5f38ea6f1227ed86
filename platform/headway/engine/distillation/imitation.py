"""The loss of a student against its teacher's outputs, which joins the loss of a task.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2: both models' scores are divided
by a temperature T before the softmax, and the loss is multiplied by T squared, so that its gradients stay as
large as those of the labels' loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.config.compression.distill import DistillConfig
from headway.data.batch import Batch
from headway.engine.distillation.states import StatesLoss
from headway.engine.distillation.teacher import Inside, Teacher
from headway.engine.model.layout import layout_of_batch

OutputKind = Literal["classes", "labels", "numbers", "span", "vectors", "words"]
"""What an objective's outputs are: scores of classes that exclude each other, of labels that do not, numbers,
scores of tokens as the first and last of a span, vectors of unit length, or scores of masked words."""

_SCALE = 20.0
"""Of cosines before the softmax, as in contrastive training."""
_NOWHERE = -1e4
"""The score of a position that does not exist: its probability is 0, and the logarithm of that is finite."""


class Distillation(nn.Module):
    """What an objective learns from its teacher.

    Attributes:
        labels: weight of the objective's own losses.
        learns_outputs: whether it needs the student's outputs.
        looks_inside: whether it needs what the student computes inside.
    """

    def __init__(
        self,
        config: DistillConfig,
        outputs: OutputKind,
        student: PreTrainedModel,
        teacher: Teacher | None = None,
    ) -> None:
        """Check that student and teacher fit together.

        Args:
            config: weights of the losses.
            outputs: what the objective's outputs are.
            student: the objective's model.
            teacher: runs beside the student; needed to look inside, and for `words`.

        Raises:
            ConfigError: the teacher has too few layers, or the relation heads do not divide both widths.
        """
        super().__init__()
        self.labels = config.labels
        self.learns_outputs = config.logits > 0.0
        self.looks_inside = config.looks_inside or outputs == "words"
        self._config, self._kind = config, outputs
        self._teacher = teacher
        self._states: StatesLoss | None = None
        if config.looks_inside:
            assert teacher is not None
            self._states = StatesLoss(config, student, teacher.model)

    def forward(self, outputs: Tensor, batch: Batch, inside: Inside | None = None) -> Tensor:
        """The weighted sum of the losses against the teacher, each a mean.

        Args:
            outputs: the student's, floating, shape (units, …); the rest of it depends on their kind.
            batch: with the teacher's outputs in `taught`, unless they are `words`.
            inside: what the student computed, if `looks_inside`.
        """
        taught, losses = batch.taught, []
        if inside is not None and self._teacher is not None:
            known = self._teacher.inside(batch, inside.last)
            if self._kind == "words" and self.learns_outputs:
                taught = self._teacher.words(known, batch)
            if self._states is not None:
                losses.append(self._states(inside, known, batch))
        if self.learns_outputs:
            if taught is None:
                raise ValueError("a batch without the teacher's outputs")
            mean_loss = _MEAN_LOSSES[self._kind]
            loss = mean_loss(outputs.float(), taught, batch, self._config.temperature)
            losses.append(self._config.logits * loss)
        return torch.stack(losses).sum()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of scores over their last dimension, as a mean over all others, times T²."""
    known = (teacher / temperature).log_softmax(-1)
    learnt = (student / temperature).log_softmax(-1)
    losses = (known.exp() * (known - learnt)).sum(-1)
    return losses.sum() / max(1, losses.numel()) * temperature**2  # a micro-batch may have no masked word


def _of_classes(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    return _divergence(student, teacher, temperature)


def _of_words(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Vocabularies may end with words that no token stands for, which only one of the models has."""
    words = min(student.size(-1), teacher.size(-1))
    return _divergence(student[:, :words], teacher[:, :words], temperature)


def _of_labels(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Each label is a choice between itself, with its score, and nothing, with the score 0."""

    def choices(scores: Tensor) -> Tensor:
        return torch.stack([scores, torch.zeros_like(scores)], -1)

    return _divergence(choices(student), choices(teacher), temperature)


def _of_numbers(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    return F.mse_loss(student, teacher)


def _of_span(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Each sequence's tokens are the classes, once as the first of the answer, and once as its last."""
    layout = layout_of_batch(batch)
    tokens = len(teacher)  # of all sequences; the student also has outputs for padding
    shape = (layout.num_sequences, batch.longest, 2)
    index = (layout.owners[:tokens], batch.position_ids[:tokens])

    def by_sequence(scores: Tensor) -> Tensor:
        # (tokens, 2) → (sequences, longest, 2) → (sequences, 2, longest)
        return scores.new_full(shape, _NOWHERE).index_put(index, scores[:tokens]).transpose(1, 2)

    return _divergence(by_sequence(student), by_sequence(teacher), temperature)


def _of_vectors(student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """How similar each text is to the others of the micro-batch; vectors may have different lengths."""
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)

    def similarities(vectors: Tensor) -> Tensor:
        # (sequences, sequences) → (sequences, sequences - 1): without each text itself
        return (vectors @ vectors.T * _SCALE)[others].view(len(others), -1)

    return _divergence(similarities(student), similarities(teacher), temperature)


_MEAN_LOSSES: dict[OutputKind, Callable[[Tensor, Tensor, Batch, float], Tensor]] = {
    "classes": _of_classes,
    "labels": _of_labels,
    "numbers": _of_numbers,
    "span": _of_span,
    "vectors": _of_vectors,
    "words": _of_words,
}
