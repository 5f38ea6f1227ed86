"""The heads of transformers' models over the hidden states of an unpadded row.

Each function runs a head's modules in the order of the model's own `forward`, so that a head trained here
gives the same numbers in transformers.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from headway.engine.model.layout import SequenceLayout

_ALIGNMENT = 64
"""Columns that fast kernels of a GPU process at once; for an odd number of words slower ones run."""


def vocabulary_logits(model: Any, hidden_states: Tensor) -> Tensor:
    """Scores of every word at some positions, by the head of `…ForMaskedLM` or `BertForPreTraining`.

    Args:
        model: a model of a supported kind with that head.
        hidden_states: floating, shape (positions, hidden_size).

    Returns:
        Floating, shape (positions, vocab_size).
    """
    transformed, projection = _before_vocabulary(model, hidden_states)
    return projection(transformed)


def aligned_vocabulary_logits(model: Any, hidden_states: Tensor) -> Tensor:
    """`vocabulary_logits` with words added that do not exist, so that a GPU multiplies at its full rate.

    Returns:
        Floating, shape (positions, vocab_size or a little more); the scores of added words are minus
        infinity.
    """
    transformed, projection = _before_vocabulary(model, hidden_states)
    added = -projection.out_features % _ALIGNMENT
    if transformed.device.type == "cpu" or not added or projection.bias is None:
        return projection(transformed)
    weight = F.pad(projection.weight, (0, 0, 0, added))
    return F.linear(transformed, weight, F.pad(projection.bias, (0, added), value=float("-inf")))


def _before_vocabulary(model: Any, hidden_states: Tensor) -> tuple[Tensor, Any]:
    """The input of the head's last product, and the layer that computes that product."""
    match model.config.model_type:
        case "bert":
            head = model.cls.predictions
            return head.transform(hidden_states), head.decoder
        case "distilbert":
            transformed = model.activation(model.vocab_transform(hidden_states))
            return model.vocab_layer_norm(transformed), model.vocab_projector
        case "electra":
            return model.generator_predictions(hidden_states), model.generator_lm_head
        case "modernbert":
            return model.head(hidden_states), model.decoder
        case _:
            head = model.lm_head
            return head.layer_norm(F.gelu(head.dense(hidden_states))), head.decoder


def next_sentence_logits(model: Any, hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    """Scores of "follows" and "does not": the second head of `BertForPreTraining`.

    Returns:
        Floating, shape (sequences, 2).
    """
    return model.cls.seq_relationship(_pooled_first_tokens(model, hidden_states, layout))


def sequence_logits(model: Any, hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    """Scores of each sequence: the head of `…ForSequenceClassification`.

    Args:
        model: a model of a supported kind with that head.
        hidden_states: floating, shape (tokens, hidden_size).
        layout: the sequences' boundaries in the row.

    Returns:
        Floating, shape (sequences, num_labels).
    """
    first = hidden_states.index_select(0, layout.first_tokens)
    match model.config.model_type:
        case "bert":
            pooled = _pooled_first_tokens(model, hidden_states, layout)
            return model.classifier(model.dropout(pooled))
        case "distilbert":
            return model.classifier(model.dropout(F.relu(model.pre_classifier(first))))
        case "modernbert":
            if model.config.classifier_pooling == "mean":
                first = mean_pooled(hidden_states, layout)
            return model.classifier(model.drop(model.head(first)))
        case "static":
            return model.scores(mean_pooled(hidden_states, layout))
        case _:
            return model.classifier(first[:, None])


def token_logits(model: Any, hidden_states: Tensor) -> Tensor:
    """Scores of each token: the head of `…ForTokenClassification`.

    Args:
        model: a model of a supported kind with that head.
        hidden_states: floating, shape (tokens, hidden_size).

    Returns:
        Floating, shape (tokens, num_labels).
    """
    if model.config.model_type == "modernbert":
        return model.classifier(model.drop(model.head(hidden_states)))
    return model.classifier(model.dropout(hidden_states))


def answer_logits(model: Any, hidden_states: Tensor) -> Tensor:
    """Scores of each token as an answer's first and last: the head of `…ForQuestionAnswering`.

    Args:
        model: a model of a supported kind with that head.
        hidden_states: floating, shape (tokens, hidden_size).

    Returns:
        Floating, shape (tokens, 2).
    """
    match model.config.model_type:
        case "modernbert":
            return model.classifier(model.drop(model.head(hidden_states)))
        case "distilbert":
            return model.qa_outputs(model.dropout(hidden_states))
        case _:
            return model.qa_outputs(hidden_states)


def mean_pooled(hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    """The mean of each sequence's tokens, as sentence encoders pool (Reimers and Gurevych 2019, section 3).

    Args:
        hidden_states: floating, shape (tokens, hidden_size).
        layout: the sequences' boundaries in the row.

    Returns:
        Floating, shape (sequences, hidden_size).
    """
    sequences = len(layout.cu_seqlens) - 1  # one more than count, if padding fills the row up
    sums = hidden_states.new_zeros(sequences, hidden_states.size(1))
    sums = sums.index_add(0, layout.owners, hidden_states)[: layout.num_sequences]
    return sums / layout.lengths[:, None]


def _pooled_first_tokens(model: Any, hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    """BERT's pooler on the [CLS] of each sequence, shape (sequences, hidden_size)."""
    first = hidden_states.index_select(0, layout.first_tokens)
    return model.base_model.pooler(first[:, None])
