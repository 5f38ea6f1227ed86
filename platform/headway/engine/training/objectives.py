"""What an encoder learns from a batch: masked words, next sentences, or classes.

An objective is a module around a transformers model. Called on an unpadded batch, it returns sums of losses
and the numbers of their predictions, so that means over workers and micro-batches are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.data.batch import Batch
from headway.data.pretraining.pairs import PairObjective
from headway.engine.distillation.imitation import Distillation, OutputKind
from headway.engine.distillation.teacher import Inside
from headway.engine.model.cross_entropy import Term, cross_entropy_sum
from headway.engine.model.heads import (
    aligned_vocabulary_logits,
    next_sentence_logits,
    sequence_logits,
    vocabulary_logits,
)
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.engine.model.unpadded import run_trunk


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Term:
    """Summed cross-entropy of logits, (predictions, classes), and int64 labels, (predictions,)."""
    if weights is None and not smoothing:
        total = cross_entropy_sum(logits, labels)
    else:
        total = F.cross_entropy(logits.float(), labels, weights, reduction="sum", label_smoothing=smoothing)
    # In each training step, finding the largest of many logits would cost as much as a layer.
    correct = labels.new_zeros(()) if torch.is_grad_enabled() else _hits(logits, labels)
    return Term(total, labels.new_full((), len(labels)), correct)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).sum()


class Objective(nn.Module):
    """A model, and what it learns from a batch.

    Attributes:
        model: a transformers model that runs unpadded.
        trunk: runs the encoder: `run_trunk`, perhaps compiled.
        is_seeded: whether dropout inside layers is drawn from seeds, as it is if compiled for a GPU.
        is_contrastive: whether the rows of a batch are each other's negatives.
        distillation: what is learnt from a teacher as well while training, if there is one.
    """

    is_contrastive: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.trunk: Callable[..., Tensor] = run_trunk
        self.is_seeded = False
        self.distillation: Distillation | None = None
        self._inside: Inside | None = None

    @property
    def loss_names(self) -> list[str]:
        """The names of the losses, which are the same for every batch."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> tuple[Tensor, SequenceLayout]:
        """The last hidden states, shape (tokens, hidden_size), and the layout of the sequences."""
        layout = layout_of_batch(batch)
        seeds = None
        if self.is_seeded and self.training:
            layers = self.model.config.num_hidden_layers
            seeds = torch.randint(2**31 - 1, (layers,), device=batch.input_ids.device)
        arguments = (
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            batch.cu_seqlens,
            batch.longest,
        )
        if self.training and self.distillation is not None and self.distillation.looks_inside:
            # Compiled as one graph, the trunk would not give what is inside.
            states: list[Tensor] = []
            hidden = run_trunk(self.model.base_model, *arguments, seeds=seeds, states=states)
            self._inside = Inside(self.model, states, hidden)
        else:
            hidden = self.trunk(self.model.base_model, *arguments, seeds=seeds)
        return hidden, layout

    def imitation(self, outputs: Tensor, batch: Batch, count: int) -> Tensor:
        """The loss against the teacher on the batch that was encoded last, times `count` predictions."""
        assert self.distillation is not None
        inside, self._inside = self._inside, None
        loss: Tensor = self.distillation(outputs, batch, inside)
        return loss * count

    def joined(self, terms: dict[str, Term], outputs: Tensor, batch: Batch, count: int) -> dict[str, Term]:
        """The weighted losses of a task, and that against the teacher as `distillation`."""
        assert self.distillation is not None
        weighted = {
            name: term._replace(total=term.total * self.distillation.labels) for name, term in terms.items()
        }
        first = next(iter(terms.values()))
        total = self.imitation(outputs, batch, count)
        predictions = first.predictions.new_full((), count)
        return weighted | {"distillation": Term(total, predictions, torch.zeros_like(first.correct))}

    def predictions(self, batch: Batch) -> dict[str, int]:
        """How many predictions each loss is summed over."""
        raise NotImplementedError


def word_loss(model: Any, hidden: Tensor, positions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of predicting words, and how many predictions are right; 0 while training.

    Args:
        model: a model with a head over the vocabulary.
        hidden: floating, shape (tokens, hidden_size).
        positions: int64, shape (masked,): indices of the tokens to predict.
        labels: int64, shape (masked,): the tokens.
    """
    term = cross_entropy(aligned_vocabulary_logits(model, hidden.index_select(0, positions)), labels)
    return term.total, term.correct


class PretrainingObjective(Objective):
    """Masked language modelling, optionally with the prediction of sentence pairs.

    Devlin et al. 2018, section 3.1. The vocabulary head only runs on the masked tokens.

    Attributes:
        word_loss: the function `word_loss`, perhaps compiled.
    """

    def __init__(self, model: PreTrainedModel, pairs: PairObjective | None) -> None:
        super().__init__(model)
        self.pairs = pairs
        self.word_loss: Callable[..., tuple[Tensor, Tensor]] = word_loss

    @property
    def loss_names(self) -> list[str]:
        """See `Objective`."""
        return ["mlm"] + ([self.pairs] if self.pairs is not None else [])

    def predictions(self, batch: Batch) -> dict[str, int]:
        """See `Objective`."""
        counts = {"mlm": len(batch.masked_labels)}
        if self.pairs is not None:
            counts[self.pairs] = len(batch.labels)
        if self.distillation is not None:
            counts["distillation"] = counts["mlm"]
        return counts

    def word_term(self, hidden: Tensor, batch: Batch) -> Term:
        """The loss of the masked words, from the last hidden states, shape (tokens, hidden_size)."""
        total, correct = self.word_loss(self.model, hidden, batch.masked_positions, batch.masked_labels)
        return Term(total, batch.masked_labels.new_full((), len(batch.masked_labels)), correct)

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Losses `mlm`, with pairs `nsp` or `sop`, and while training with a teacher `distillation`."""
        hidden, layout = self.encode(batch)
        terms = {"mlm": self.word_term(hidden, batch)}
        if self.pairs is not None:
            logits = next_sentence_logits(self.model, hidden, layout)
            terms[self.pairs] = cross_entropy(logits, batch.labels)
        if self.distillation is None or not self.training:
            return terms
        words = hidden.index_select(0, batch.masked_positions)
        if self.distillation.learns_outputs:
            words = vocabulary_logits(self.model, words)
        return self.joined(terms, words, batch, len(batch.masked_labels))


class TaskObjective(Objective):
    """A single loss over a model's outputs for each row of a task; subclasses define it.

    Attributes:
        name: of the loss.
        unit: what the first dimension of the outputs counts: sequences, tokens, or positions with a label.
        output_kind: what the outputs are.
    """

    name: ClassVar[str]
    unit: ClassVar[Literal["sequence", "token", "position"]] = "sequence"
    output_kind: ClassVar[OutputKind]

    @property
    def loss_names(self) -> list[str]:
        """See `Objective`."""
        return [self.name]

    def outputs(self, batch: Batch) -> Tensor:
        """The model's outputs, floating, shape (units, …)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """The summed loss of the model's outputs."""
        raise NotImplementedError

    def count(self, batch: Batch) -> int:
        """How many predictions a batch has."""
        return len(batch.masked_positions if self.unit == "position" else batch.lengths)

    def predictions(self, batch: Batch) -> dict[str, int]:
        """See `Objective`."""
        names = [self.name] + (["distillation"] if self.distillation is not None else [])
        return dict.fromkeys(names, self.count(batch))

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The loss under its name and, while training with a teacher, that against it as `distillation`."""
        outputs = self.outputs(batch)
        terms = {self.name: self.loss(outputs, batch)}
        if self.distillation is None or not self.training:
            return terms
        return self.joined(terms, outputs, batch, self.count(batch))


class ClassificationObjective(TaskObjective):
    """Cross-entropy over classes, optionally with class weights and label smoothing.

    The mean is over sequences, whatever the weights of their classes.
    """

    name = "classification"
    output_kind = "classes"
    class_weights: Tensor | None

    def __init__(
        self, model: PreTrainedModel, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        """Take float32 weights of shape (classes,), and the fraction of a label to spread over all classes.

        Label smoothing is that of Szegedy et al. 2016, section 7.
        """
        super().__init__(model)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing

    def logits(self, batch: Batch) -> Tensor:
        """Scores before softmax, shape (sequences, classes)."""
        hidden, layout = self.encode(batch)
        return sequence_logits(self.model, hidden, layout)

    def outputs(self, batch: Batch) -> Tensor:
        """See `logits`."""
        return self.logits(batch)

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Cross-entropy with the batch's labels, int64 of shape (sequences,)."""
        return cross_entropy(outputs, batch.labels, self.class_weights, self.label_smoothing)
