"""Losses inside of student and teacher, against transformers and plain loops over sequences and heads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import LENGTHS, build, random_batch

from headway.config.base import ConfigError
from headway.config.compression.distill import DistillConfig
from headway.data.batch import Batch
from headway.engine.distillation.imitation import Distillation
from headway.engine.distillation.states import hidden_loss, projections, relation_loss, taught_layers
from headway.engine.distillation.teacher import Teacher
from headway.engine.model.lora import keep_layers
from headway.engine.model.unpadded import encoder_layers, run_trunk, run_unpadded
from headway.engine.training.objectives import PretrainingObjective

KINDS = ["bert", "distilbert", "modernbert"]
MASKED = torch.tensor([1, 6, 30, 45])


def values(width, seed):
    return torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    ids, types, *_ = random_batch("bert")
    return Batch.of(
        input_ids=ids,
        token_type_ids=types,
        lengths=torch.tensor(LENGTHS),
        labels=torch.zeros(len(LENGTHS), dtype=torch.int64),
        masked_positions=MASKED,
        masked_labels=ids[MASKED],
        row_ids=torch.arange(len(LENGTHS)),
    )


def model_of(kind, head="MaskedLM"):
    model = copy.deepcopy(build(kind, head).float())
    run_unpadded(model)
    return model


def test_relations_are_those_of_minilm_v2_in_each_sequence_and_head(batch):
    student, teacher = values(16, seed=0), values(24, seed=1)
    heads, sequences = 4, []
    for ours, known in zip(student.split(LENGTHS), teacher.split(LENGTHS), strict=True):
        parts = []
        for mine, his in zip(ours.chunk(heads, -1), known.chunk(heads, -1), strict=True):
            learnt = F.log_softmax(mine @ mine.T / mine.size(1) ** 0.5, -1)
            target = F.softmax(his @ his.T / his.size(1) ** 0.5, -1)
            parts.append(F.kl_div(learnt, target, reduction="sum") / len(mine))
        sequences.append(torch.stack(parts).sum() / heads)
    expected = torch.stack(sequences).mean()
    torch.testing.assert_close(relation_loss(student, teacher, batch, heads), expected)


def test_padding_has_no_part_in_either_loss(batch):
    student, teacher = values(16, seed=0), values(16, seed=1)
    padded = batch.padded(96, 0)
    noise = torch.full((96 - sum(LENGTHS), 16), 7.0)
    long, longer = torch.cat([student, noise]), torch.cat([teacher, noise * 2])
    torch.testing.assert_close(
        relation_loss(long, longer, padded, 2), relation_loss(student, teacher, batch, 2)
    )
    expected = 1.0 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(hidden_loss(long, longer, padded), expected)


def test_layers_are_taught_by_those_at_their_height():
    assert taught_layers(3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert taught_layers(4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert taught_layers(2, 2) == [(1, 1), (2, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_what_a_layer_of_transformers_computes(kind, batch):
    model = model_of(kind).eval()
    layer: Any = encoder_layers(model)[1]
    seen: dict[str, torch.Tensor] = {}
    if kind == "modernbert":
        modules = {"all": layer.attn.Wqkv}
    elif kind == "bert":
        attention = layer.attention.self
        modules = {"query": attention.query, "key": attention.key, "value": attention.value}
    else:
        modules = {name: getattr(layer.attention, f"{name[0]}_lin") for name in ("query", "key", "value")}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    states: list[torch.Tensor] = []
    run_trunk(
        model.base_model,
        batch.input_ids,
        batch.token_type_ids,
        batch.position_ids,
        batch.cu_seqlens,
        batch.longest,
        states=states,
    )
    expected = torch.cat(list(seen.values()), -1)
    seen.clear()
    torch.testing.assert_close(torch.cat(projections(model, 1, states[1]), -1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_hidden_states_of_transformers(kind, batch):
    model = model_of(kind).eval()
    inside = Teacher(model).inside(batch, torch.zeros(()))
    _, _, padded, padded_types, mask = random_batch(kind)
    model.set_attn_implementation("sdpa")
    arguments = {"input_ids": padded, "attention_mask": mask.long(), "output_hidden_states": True}
    arguments |= {"token_type_ids": padded_types} if kind == "bert" else {}
    expected = model.base_model(**arguments)
    assert len(inside.states) == 3
    for found, state in zip(inside.states[:2], expected.hidden_states, strict=False):
        torch.testing.assert_close(found, state[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inside.last, expected.last_hidden_state[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_and_another_does(kind, batch):
    teacher = model_of(kind)
    config = DistillConfig(teacher="t", hidden=1.0, relations=1.0)
    for layers, learns in ((2, False), (1, True)):
        student = copy.deepcopy(teacher)
        keep_layers(student, layers)
        objective = PretrainingObjective(student, None)
        objective.distillation = Distillation(config, "words", student, Teacher(copy.deepcopy(teacher)))
        objective.train()
        student.eval()
        terms = objective(batch)
        assert (float(terms["distillation"].total) > 1e-4) == learns
        terms["distillation"].total.backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        gradients = [p.grad.abs().max() for p in student.base_model.parameters() if p.grad is not None]
        assert (max(gradients) > 1e-4) == learns


def test_masked_words_are_learnt_by_the_teacher_s_probabilities(batch):
    student, teacher = model_of("bert"), model_of("bert")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    objective = PretrainingObjective(student, None)
    config = DistillConfig(teacher="t", labels=0.5, temperature=2.0)
    objective.distillation = Distillation(config, "words", student, Teacher(teacher))
    assert objective.predictions(batch) == {"mlm": 4, "distillation": 4}
    objective.train()
    student.eval()
    found = objective(batch)

    def words(model):
        _, _, padded, types, mask = random_batch("bert")
        model.set_attn_implementation("sdpa")
        return model(input_ids=padded, attention_mask=mask.long(), token_type_ids=types).logits[mask][MASKED]

    ours, known = words(student), words(teacher)
    kl = F.kl_div(F.log_softmax(ours / 2, -1), F.softmax(known / 2, -1), reduction="sum") * 4
    torch.testing.assert_close(found["distillation"].total, kl, rtol=1e-3, atol=1e-4)
    cross_entropy = F.cross_entropy(ours, batch.masked_labels, reduction="sum")
    torch.testing.assert_close(found["mlm"].total, cross_entropy / 2, rtol=1e-3, atol=1e-4)


def test_a_narrower_student_s_states_are_widened_by_a_product_that_is_trained(batch):
    from headway.engine.pruning.cut import pruned

    teacher = model_of("bert")
    kept = {"hidden": torch.arange(16), "heads.0": torch.arange(2), "heads.1": torch.arange(2)}
    student = pruned(teacher, kept | {"pooled": torch.arange(16)})
    objective = PretrainingObjective(student, None)
    config = DistillConfig(teacher="t", logits=0.0, hidden=1.0, relations=1.0, relation_heads=8)
    objective.distillation = Distillation(config, "words", student, Teacher(teacher))
    weights = dict(objective.distillation.named_parameters())
    assert [weight.shape for weight in weights.values()] == [(32, 16), (32, 16)]
    objective.train()
    objective(batch)["distillation"].total.backward()
    assert all(weight.grad is not None for weight in weights.values())
    copied = copy.deepcopy(objective)
    assert copied.distillation is not None
    assert copied.distillation._teacher is objective.distillation._teacher


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"relation_heads": 5},
            r"^distill\.relation_heads: 5 do not divide the hidden sizes of both",
        ),
        ({"teacher_layer": 3}, r"^distill\.teacher_layer: 3 is not allowed; the teacher has 2 layers$"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(settings, message):
    model = model_of("bert")
    with pytest.raises(ConfigError, match=message):
        Distillation(DistillConfig(teacher="t", relations=1.0, **settings), "words", model, Teacher(model))
