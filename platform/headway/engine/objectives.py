"""What an encoder learns from a batch: masked words, next sentences, classes.

Each objective is a module around a transformers model. Called on an unpadded batch it returns sums of
losses with the counts they are over, so that means over several workers and micro-batches are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.data.batches import Batch
from headway.engine.encoder import encode_unpadded, pool_first_tokens
from headway.engine.layout import layout_of_lengths


class Term(NamedTuple):
    """One loss of an objective on one batch.

    Attributes:
        total: float32 scalar, the loss summed over its predictions.
        predictions: int64 scalar, how many predictions there are.
        correct: int64 scalar, how many of them are right; not counted while training, where it is 0.
    """

    total: Tensor
    predictions: Tensor
    correct: Tensor


def _cross_entropy(logits: Tensor, labels: Tensor) -> Term:
    """Sum of cross-entropies; logits of shape (predictions, classes), labels int64 (predictions,)."""
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    # The search for the largest of many logits would cost as much as a layer in each training step.
    correct = labels.new_zeros(()) if torch.is_grad_enabled() else _hits(logits, labels)
    return Term(total, torch.tensor(len(labels), device=labels.device), correct)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).sum()


class PretrainingObjective(nn.Module):
    """Masked language modelling, and next-sentence prediction where the model has its head.

    Devlin et al. 2018, section 3.1. The vocabulary head runs on the masked tokens only.
    """

    def __init__(self, model: PreTrainedModel, next_sentence: bool) -> None:
        super().__init__()
        self.model = model
        self.next_sentence = next_sentence

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Losses `mlm` and, with next sentences, `nsp`."""
        encoder = self.model.base_model
        layout = layout_of_lengths(batch.lengths)
        hidden = encode_unpadded(encoder, batch.input_ids, batch.token_type_ids, layout)
        masked = hidden.index_select(0, batch.masked_places)
        terms = {"mlm": _cross_entropy(self.model.cls.predictions(masked), batch.masked_labels)}
        if self.next_sentence:
            pooled = pool_first_tokens(encoder, hidden, layout)
            terms["nsp"] = _cross_entropy(self.model.cls.seq_relationship(pooled), batch.labels)
        return terms


class ClassificationObjective(nn.Module):
    """Cross-entropy over classes, read from the pooled first token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def logits(self, batch: Batch) -> Tensor:
        """Scores before softmax, shape (sequences, classes)."""
        encoder = self.model.base_model
        layout = layout_of_lengths(batch.lengths)
        hidden = encode_unpadded(encoder, batch.input_ids, batch.token_type_ids, layout)
        pooled = pool_first_tokens(encoder, hidden, layout)
        return self.model.classifier(self.model.dropout(pooled))

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The loss `classification`."""
        return {"classification": _cross_entropy(self.logits(batch), batch.labels)}
