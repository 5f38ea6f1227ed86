"""Losses against a teacher, each against torch's own functions, one row at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import build

from headway.config.base import ConfigError
from headway.config.compression.distill import DistillConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.pretrain import PretrainConfig
from headway.data.batch import Batch, Packing
from headway.engine.distillation.imitation import Distillation
from headway.engine.model.unpadded import run_unpadded
from headway.engine.training.objectives import ClassificationObjective

LENGTHS = [3, 5, 2]
T = 3.0
STUDENT = build("bert", "SequenceClassification")
NOTHING = torch.empty(0, dtype=torch.int64)


def batch_of(taught):
    tokens = sum(LENGTHS)
    batch = Batch.of(
        input_ids=torch.arange(tokens) + 5,
        token_type_ids=torch.zeros(tokens, dtype=torch.int64),
        lengths=torch.tensor(LENGTHS),
        labels=torch.tensor([0, 1, 1]),
        masked_positions=NOTHING,
        masked_labels=NOTHING,
        row_ids=torch.arange(3),
    )
    return replace(batch, taught=taught)


def loss_of(kind, student, teacher, logits=1.0):
    config = DistillConfig(teacher="t", temperature=T, logits=logits)
    return Distillation(config, kind, STUDENT)(student, batch_of(teacher))


def scores(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def softened(student, teacher):
    """KL of one row of scores, by torch, times the temperature squared."""
    return T**2 * F.kl_div(F.log_softmax(student / T, -1), F.softmax(teacher / T, -1), reduction="sum")


def test_classes_are_learnt_by_their_softened_probabilities():
    student, teacher = scores(3, 4, seed=0), scores(3, 4, seed=1)
    expected = torch.stack([softened(*rows) for rows in zip(student, teacher, strict=True)]).mean()
    torch.testing.assert_close(loss_of("classes", student, teacher), expected)
    torch.testing.assert_close(loss_of("classes", student, teacher, logits=0.25), expected / 4)
    assert abs(loss_of("classes", teacher, teacher)) < 1e-6


def test_a_micro_batch_without_any_output_adds_nothing():
    assert float(loss_of("classes", torch.empty(0, 4), torch.empty(0, 4))) == 0.0
    assert float(loss_of("vectors", torch.ones(1, 4), torch.ones(1, 6))) == 0.0


def test_labels_are_learnt_one_by_one():
    student, teacher = scores(3, 4, seed=0).requires_grad_(), scores(3, 4, seed=1)
    loss = loss_of("labels", student, teacher)
    # Binary cross-entropy against the teacher's probabilities differs by what no student can change.
    wanted = T**2 * F.binary_cross_entropy_with_logits(student / T, (teacher / T).sigmoid())
    [actual], [expected] = torch.autograd.grad(loss, [student]), torch.autograd.grad(wanted, [student])
    torch.testing.assert_close(actual, expected)


def test_numbers_are_learnt_by_their_squared_error():
    student, teacher = scores(3, seed=0), scores(3, seed=1)
    torch.testing.assert_close(loss_of("numbers", student, teacher), ((student - teacher) ** 2).mean())


def test_the_ends_of_a_span_are_learnt_within_each_sequence():
    student, teacher = scores(10, 2, seed=0), scores(10, 2, seed=1)
    pairs = zip(student.split(LENGTHS), teacher.split(LENGTHS), strict=True)
    rows = [softened(ours[:, end], known[:, end]) for ours, known in pairs for end in (0, 1)]
    torch.testing.assert_close(loss_of("span", student, teacher), torch.stack(rows).mean())


def test_vectors_are_learnt_by_how_similar_texts_are_to_one_another_whatever_their_length():
    student = F.normalize(scores(4, 8, seed=0), dim=-1)
    teacher = F.normalize(scores(4, 12, seed=1), dim=-1)
    rows = []
    for text in range(4):
        others = [other for other in range(4) if other != text]
        ours, known = (20 * vectors[others] @ vectors[text] for vectors in (student, teacher))
        rows.append(softened(ours, known))
    torch.testing.assert_close(loss_of("vectors", student, teacher), torch.stack(rows).mean())


def test_the_teacher_s_loss_joins_the_task_s_in_training_only():
    model = build("bert", "SequenceClassification").float()
    run_unpadded(model)
    alone, student = ClassificationObjective(model), ClassificationObjective(model)
    config = DistillConfig(teacher="t", labels=0.5, temperature=T)
    student.distillation = Distillation(config, student.output_kind, model)
    batch = batch_of(scores(3, 2, seed=1))
    student.train()
    model.eval()  # without dropout, so that both runs are the same
    terms, task = student(batch), alone(batch)["classification"]
    assert student.predictions(batch) == {"classification": 3, "distillation": 3}
    torch.testing.assert_close(terms["classification"].total, task.total / 2)
    expected = 3 * loss_of("classes", student.outputs(batch), batch.taught)
    torch.testing.assert_close(terms["distillation"].total, expected)
    assert int(terms["distillation"].predictions) == 3
    student.eval()
    assert list(student(batch)) == ["classification"]
    torch.testing.assert_close(student(batch)["classification"].total, task.total)


def test_a_taught_batch_travels_with_what_the_teacher_said():
    taught = scores(3, 2, seed=1)
    batch = batch_of(taught)
    packing = Packing.of(batch)
    buffer = torch.empty(packing.size, dtype=torch.uint8)
    packing.write(batch, buffer)
    received = packing.read(buffer).taught
    assert received is not None
    np.testing.assert_array_equal(received, taught)
    padded = batch.padded(16, 0).taught
    assert padded is not None
    assert torch.equal(padded, taught)


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teacher": "t", "logits": 0.0}, "learns nothing from the teacher; leave distill out"),
        ({"teacher": "t", "temperature": 0.0}, "distill.temperature: 0.0 is not allowed"),
        ({}, "distill.teacher: "),
    ],
)
def test_settings_by_which_nothing_is_learnt_are_refused(distill, message):
    with pytest.raises(ConfigError, match=message):
        validate(FinetuneConfig, {"model": "m", "task": "t", "distill": distill})


def test_a_student_that_is_split_over_workers_is_refused():
    split = {"workers": 2, "parallel": {"tensor": 2}, "distill": {"teacher": "t"}}
    with pytest.raises(ConfigError, match=r"distill does not go with parallel\.shard, tensor and pipeline"):
        validate(FinetuneConfig, {"model": "m", "task": "t"} | split)


def test_a_teacher_beside_contrastive_pretraining_is_refused():
    settings = {"corpus": "c", "objective": ["mlm", "contrastive"], "distill": {"teacher": "t"}}
    with pytest.raises(ConfigError, match=r"distill does not go with objective contrastive; \[mlm\]"):
        validate(PretrainConfig, settings)
