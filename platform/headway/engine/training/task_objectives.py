"""What an encoder learns from a batch of a task, for all tasks but classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from headway.data.batches import Batch
from headway.engine.model.cross_entropy import Term
from headway.engine.model.heads import answer_logits, mean_pooled, sequence_logits, token_logits
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.engine.training.objectives import TaskObjective, cross_entropy


def _term(total: Tensor, predictions: int) -> Term:
    count = total.new_full((), predictions, dtype=torch.int64)
    return Term(total, count, total.new_zeros((), dtype=torch.int64))


class MultiLabelObjective(TaskObjective):
    """Binary cross-entropy for each label, averaged over the labels."""

    name = "multi_label"
    output_kind = "labels"
    positive_weights: Tensor | None

    def __init__(self, model: PreTrainedModel, *, positive_weights: Tensor | None = None) -> None:
        """Take float32 weights of shape (labels,) of rows that have a label, relative to those that don't."""
        super().__init__(model)
        self.register_buffer("positive_weights", positive_weights, persistent=False)

    def outputs(self, batch: Batch) -> Tensor:
        """Scores before the sigmoid, shape (sequences, labels)."""
        hidden, layout = self.encode(batch)
        return sequence_logits(self.model, hidden, layout)

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are float32 of shape (sequences, labels), 0 or 1."""
        losses = F.binary_cross_entropy_with_logits(
            outputs.float(), batch.labels, pos_weight=self.positive_weights, reduction="none"
        )
        return _term(losses.mean(-1).sum(), len(outputs))


class RegressionObjective(TaskObjective):
    """Squared error of one number for each sequence."""

    name = "regression"
    output_kind = "numbers"

    def outputs(self, batch: Batch) -> Tensor:
        """Numbers, shape (sequences,)."""
        hidden, layout = self.encode(batch)
        return sequence_logits(self.model, hidden, layout)[:, 0]

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are float32 of shape (sequences,)."""
        return _term(F.mse_loss(outputs.float(), batch.labels, reduction="sum"), len(outputs))


class RerankingObjective(RegressionObjective):
    """Binary cross-entropy of whether a passage answers a query (Nogueira and Cho 2019, section 3)."""

    name = "reranking"

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are float32 of shape (sequences,), 0 or 1."""
        total = F.binary_cross_entropy_with_logits(outputs.float(), batch.labels, reduction="sum")
        return _term(total, len(outputs))


class WordsObjective(TaskObjective):
    """Cross-entropy over the label of each word, which is predicted at the word's first piece."""

    name = "tokens"
    unit = "position"
    output_kind = "classes"
    class_weights: Tensor | None

    def __init__(
        self, model: PreTrainedModel, *, class_weights: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        """Take float32 weights of shape (labels,), and the fraction of a label to spread over all labels."""
        super().__init__(model)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing

    def outputs(self, batch: Batch) -> Tensor:
        """Scores before softmax, shape (words, labels)."""
        hidden, _ = self.encode(batch)
        return token_logits(self.model, hidden.index_select(0, batch.masked_positions))

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are `masked_labels`."""
        return cross_entropy(outputs, batch.masked_labels, self.class_weights, self.label_smoothing)


class AnswerObjective(TaskObjective):
    """Cross-entropy of an answer's first and last token, averaged (Devlin et al. 2018, section 4.2)."""

    name = "answer"
    unit = "token"
    output_kind = "span"

    def outputs(self, batch: Batch) -> Tensor:
        """Scores of each token as an answer's first and last, shape (tokens, 2)."""
        hidden, _ = self.encode(batch)
        return answer_logits(self.model, hidden)

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are int64 of shape (sequences, 2): indices of the first and last token in each sequence."""
        layout = layout_of_batch(batch)
        rows = len(batch.cu_seqlens) - 1  # one more than there are sequences, if there is padding
        nowhere = outputs.new_full((rows, batch.longest, 2), float("-inf"), dtype=torch.float32)
        # (tokens, 2) → (sequences, longest, 2)
        padded = nowhere.index_put((layout.owners, batch.position_ids), outputs.float())
        total = F.cross_entropy(padded[: layout.num_sequences], batch.labels, reduction="sum") / 2
        return _term(total, layout.num_sequences)


def sentence_vectors(hidden: Tensor, layout: SequenceLayout) -> Tensor:
    """Mean-pooled vectors of length 1, float32, shape (sequences, hidden_size)."""
    return F.normalize(mean_pooled(hidden.float(), layout), dim=-1)


class EmbeddingObjective(TaskObjective):
    """Groups of texts, each of which gets a vector; subclasses define the loss."""

    name = "embedding"
    output_kind = "vectors"

    def __init__(self, model: PreTrainedModel, *, group_size: int) -> None:
        """Take the number of texts in each row's group: anchor, positive, and negatives."""
        super().__init__(model)
        self.group_size = group_size

    def outputs(self, batch: Batch) -> Tensor:
        """See `sentence_vectors`."""
        return sentence_vectors(*self.encode(batch))

    def count(self, batch: Batch) -> int:
        """One prediction for each group."""
        return len(batch.lengths) // self.group_size


class CosineObjective(EmbeddingObjective):
    """The squared error of the cosine of a pair against its score."""

    def loss(self, outputs: Tensor, batch: Batch) -> Term:
        """Labels are float32 of shape (sequences,): the scores, as cosines."""
        # (sequences, hidden_size) → (groups, group_size, hidden_size)
        groups = outputs.unflatten(0, (-1, self.group_size))
        cosines = (groups[:, 0] * groups[:, 1]).sum(-1)
        labels = batch.labels[:: self.group_size]
        return _term(F.mse_loss(cosines, labels, reduction="sum"), len(groups))
