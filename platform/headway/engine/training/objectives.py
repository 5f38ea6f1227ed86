"""What an encoder learns from a batch: masked words, next sentences, classes.

Each objective is a module around a transformers model. Called on an unpadded batch it returns sums of
losses with the counts they are over, so that means over several workers and micro-batches are exact.
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
from headway.engine.model.cross_entropy import Term, cross_entropy_sum
from headway.engine.model.heads import aligned_vocabulary_logits, next_sentence_logits, sequence_logits
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.engine.model.unpadded import run_trunk


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Term:
    """Sum of cross-entropies; logits of shape (predictions, classes), labels int64 (predictions,)."""
    if weights is None and not smoothing:
        total = cross_entropy_sum(logits, labels)
    else:
        total = F.cross_entropy(logits.float(), labels, weights, reduction="sum", label_smoothing=smoothing)
    # The search for the largest of many logits would cost as much as a layer in each training step.
    correct = labels.new_zeros(()) if torch.is_grad_enabled() else _hits(logits, labels)
    return Term(total, labels.new_full((), len(labels)), correct)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).sum()


class Objective(nn.Module):
    """A model, and what it learns from a batch.

    Attributes:
        model: a transformers model that runs unpadded.
        trunk: runs its encoder; `run_trunk`, maybe compiled.
        is_seeded: whether dropout inside layers is drawn from seeds, as it is when compiled for a GPU.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.trunk: Callable[..., Tensor] = run_trunk
        self.is_seeded = False

    @property
    def loss_names(self) -> list[str]:
        """Names of the losses, the same for every batch."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> tuple[Tensor, SequenceLayout]:
        """The last hidden states, shape (tokens, hidden_size), and how the sequences lie in them."""
        layout = layout_of_batch(batch)
        seeds = None
        if self.is_seeded and self.training:
            layers = self.model.config.num_hidden_layers
            seeds = torch.randint(2**31 - 1, (layers,), device=batch.input_ids.device)
        hidden = self.trunk(
            self.model.base_model,
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            batch.cu_seqlens,
            batch.longest,
            seeds=seeds,
        )
        return hidden, layout

    def predictions(self, batch: Batch) -> dict[str, int]:
        """How many predictions each loss is over."""
        raise NotImplementedError


def word_loss(model: Any, hidden: Tensor, positions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of guessing words, and how many were guessed right; 0 while training.

    Args:
        model: with a head over the vocabulary.
        hidden: floating, shape (tokens, hidden_size).
        positions: int64, shape (masked,): the tokens to guess.
        labels: int64, shape (masked,): what they are.
    """
    term = cross_entropy(aligned_vocabulary_logits(model, hidden.index_select(0, positions)), labels)
    return term.total, term.correct


class PretrainingObjective(Objective):
    """Masked language modelling, and a judgement of sentence pairs if the model has a head for it.

    Devlin et al. 2018, section 3.1. The vocabulary head runs on the masked tokens only.

    Attributes:
        word_loss: `word_loss`, maybe compiled.
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
        return counts | ({self.pairs: len(batch.labels)} if self.pairs is not None else {})

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Losses `mlm` and, with pairs, `nsp` or `sop`."""
        hidden, layout = self.encode(batch)
        total, correct = self.word_loss(self.model, hidden, batch.masked_positions, batch.masked_labels)
        terms = {"mlm": Term(total, batch.masked_labels.new_full((), len(batch.masked_labels)), correct)}
        if self.pairs is not None:
            judged = next_sentence_logits(self.model, hidden, layout)
            terms[self.pairs] = cross_entropy(judged, batch.labels)
        return terms


class TaskObjective(Objective):
    """One loss over what a model says of each row of a task; subclasses say which.

    Attributes:
        name: of the loss.
        unit: what the outputs' first dimension counts: sequences, tokens, or the positions with a label.
    """

    name: ClassVar[str]
    unit: ClassVar[Literal["sequence", "token", "position"]] = "sequence"

    @property
    def loss_names(self) -> list[str]:
        """See `Objective`."""
        return [self.name]

    def outputs(self, batch: Batch) -> Tensor:
        """What the model says, floating, shape (units, …)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """The loss of what the model said, summed."""
        raise NotImplementedError

    def predictions(self, batch: Batch) -> dict[str, int]:
        """See `Objective`."""
        return {self.name: len(batch.masked_positions if self.unit == "position" else batch.lengths)}

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The loss under its name."""
        return {self.name: self.loss(self.outputs(batch), batch)}


class ClassificationObjective(TaskObjective):
    """Cross-entropy over classes, with rare classes weighted up and labels smoothed if wanted.

    The mean is over sequences, whatever their weights.
    """

    name = "classification"
    class_weights: Tensor | None

    def __init__(
        self, model: PreTrainedModel, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        """Take float32 weights of shape (classes,), and the share of a label that is spread over all.

        Szegedy et al. 2016, section 7, for the smoothing.
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
