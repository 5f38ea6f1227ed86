"""The losses of tasks against transformers' own, or a closed form, on the same padded batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import BertConfig

from headway.data.batches import Example, collate
from headway.engine.model.unpadded import run_unpadded
from headway.engine.training.contrastive import ContrastiveObjective
from headway.engine.training.objectives import ClassificationObjective
from headway.engine.training.task_objectives import (
    AnswerObjective,
    CosineObjective,
    MultiLabelObjective,
    RegressionObjective,
    RerankingObjective,
    WordsObjective,
)

LENGTHS = [5, 17, 9, 12]
CONFIG = BertConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=32,
    num_labels=3,
)


def build(head: str, **settings):
    torch.manual_seed(0)
    config = BertConfig(**CONFIG.to_dict() | settings)
    return getattr(transformers, f"AutoModel{head}").from_config(config, dtype=torch.float64).eval()


def sequences(labels, words=None):
    rng = np.random.default_rng(1)
    nothing = np.empty(0, np.int64)
    examples = []
    for row, length in enumerate(LENGTHS):
        positions, place_labels = words[row] if words else (nothing, nothing)
        ids = rng.integers(5, 61, length)
        types = (np.arange(length) >= length // 2).astype(np.int64)
        examples.append(Example(ids, types, labels[row], positions, place_labels, row))
    return examples


def padded(examples):
    size = (len(examples), max(len(e.input_ids) for e in examples))
    arrays = {name: torch.zeros(size, dtype=torch.long) for name in ("input_ids", "token_type_ids")}
    mask = torch.zeros(size, dtype=torch.long)
    for row, example in enumerate(examples):
        for name, array in arrays.items():
            array[row, : len(example.input_ids)] = torch.from_numpy(getattr(example, name))
        mask[row, : len(example.input_ids)] = 1
    return arrays | {"attention_mask": mask}


def mean_loss(objective, examples):
    run_unpadded(objective.model)
    batch = collate(examples)
    [(name, term)] = objective(batch).items()
    assert int(term.predictions) == objective.predictions(batch)[name]
    return term.total / term.predictions


def test_multi_label_loss_equals_transformers():
    labels = np.random.default_rng(2).integers(0, 2, (4, 3)).astype(np.float64)
    model = build("ForSequenceClassification", problem_type="multi_label_classification")
    examples = sequences(labels)
    expected = model(**padded(examples), labels=torch.from_numpy(labels)).loss
    actual = mean_loss(MultiLabelObjective(model.float()), sequences(labels.astype(np.float32)))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_regression_loss_equals_transformers():
    labels = np.asarray([0.5, -1.0, 2.0, 0.1], dtype=np.float32)
    model = build("ForSequenceClassification", problem_type="regression", num_labels=1).float()
    examples = sequences(labels)
    expected = model(**padded(examples), labels=torch.from_numpy(labels)).loss
    actual = mean_loss(RegressionObjective(model), examples)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_reranking_loss_is_binary_cross_entropy():
    labels = np.asarray([1, 0, 0, 1], dtype=np.float32)
    model = build("ForSequenceClassification", num_labels=1).float()
    examples = sequences(labels)
    logits = model(**padded(examples)).logits[:, 0]
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels))
    assert mean_loss(RerankingObjective(model), examples).item() == pytest.approx(expected.item(), rel=1e-5)


def test_words_loss_equals_transformers_with_the_other_pieces_ignored():
    words = [(np.asarray([1, 3]), np.asarray([0, 2])), (np.asarray([1, 2, 9]), np.asarray([1, 1, 0]))]
    words += [(np.asarray([1]), np.asarray([2])), (np.asarray([1, 5, 7]), np.asarray([0, 0, 1]))]
    model = build("ForTokenClassification").float()
    examples = sequences([0] * 4, words)
    inputs = padded(examples)
    targets = torch.full(inputs["input_ids"].shape, -100)
    for row, (positions, labels) in enumerate(words):
        targets[row, positions] = torch.from_numpy(labels)
    expected = model(**inputs, labels=targets).loss
    assert mean_loss(WordsObjective(model), examples).item() == pytest.approx(expected.item(), rel=1e-5)


def test_answer_loss_equals_transformers():
    labels = np.asarray([[1, 3], [2, 2], [0, 0], [4, 8]])
    model = build("ForQuestionAnswering", num_labels=2).float()
    examples = sequences(labels)
    inputs = padded(examples)
    output = model(**inputs)
    # transformers lets padding take part in the softmax; it must not.
    hidden = inputs["attention_mask"] == 0
    logits = [
        scores.masked_fill(hidden, float("-inf")) for scores in (output.start_logits, output.end_logits)
    ]
    losses = [F.cross_entropy(part, torch.from_numpy(labels[:, i])) for i, part in enumerate(logits)]
    expected = torch.stack(losses).mean()
    assert mean_loss(AnswerObjective(model), examples).item() == pytest.approx(expected.item(), rel=1e-5)


def test_multiple_negatives_loss_is_cross_entropy_over_the_batchs_cosines():
    model = build("").float()
    examples = sequences(np.zeros(4, np.float32))
    inputs = padded(examples)
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    vectors = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    expected = F.cross_entropy(vectors[0::2] @ vectors[1::2].T * 20, torch.arange(2))
    objective = ContrastiveObjective(model, group_size=2)
    assert mean_loss(objective, examples).item() == pytest.approx(expected.item(), rel=1e-4)


def test_hard_negatives_are_candidates_of_every_anchor():
    model = build("").float()
    examples = sequences(np.zeros(4, np.float32))[:3]
    vectors = ContrastiveObjective(model, group_size=3)
    run_unpadded(model)
    anchor, positive, negative = vectors.outputs(collate(examples))
    expected = F.cross_entropy(
        torch.stack([anchor @ positive, anchor @ negative])[None] * 20, torch.tensor([0])
    )
    assert mean_loss(vectors, examples).item() == pytest.approx(expected.item(), rel=1e-5)


def test_cosine_loss_is_the_squared_error_of_cosines():
    model = build("").float()
    scores = np.asarray([0.25, 0.25, 1.0, 1.0], np.float32)
    objective = CosineObjective(model, group_size=2)
    run_unpadded(model)
    vectors = objective.outputs(collate(sequences(scores)))
    cosines = F.cosine_similarity(vectors[0::2], vectors[1::2])
    expected = F.mse_loss(cosines, torch.tensor([0.25, 1.0]))
    assert mean_loss(objective, sequences(scores)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_class_weights_and_smoothing_are_those_of_torch():
    labels = np.asarray([0, 2, 1, 2])
    model = build("ForSequenceClassification").float()
    weights = torch.tensor([0.5, 2.0, 1.5])
    examples = sequences(labels)
    logits = model(**padded(examples)).logits
    expected = F.cross_entropy(
        logits, torch.from_numpy(labels), weights, label_smoothing=0.1, reduction="sum"
    ) / len(labels)
    objective = ClassificationObjective(model, class_weights=weights, label_smoothing=0.1)
    assert mean_loss(objective, examples).item() == pytest.approx(expected.item(), rel=1e-5)
