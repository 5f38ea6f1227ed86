"""Negatives come from the whole step: the loss is that of one batch, however the work is cut up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import (
    GROUP_LAYOUTS,
    tiny_bert,
    tiny_config,
    tiny_contrastive_objective,
    tiny_groups,
    train,
    train_in_processes,
)
from transformers import BertModel

from headway.config.compression.distill import DistillConfig
from headway.data.sampling import derived_seed, rows_of_step
from headway.engine.distillation.imitation import Distillation
from headway.engine.parallel.worker import Worker
from headway.engine.training.contrastive import ContrastiveStep, loss_among_all
from headway.engine.training.trainer import Trainer

STEPS, BATCH, RATE = 4, 12, 1e-3
SETTINGS: dict[str, Any] = {
    "contrastive": True,
    "scored": True,
    "dropout": 0.0,
    "steps": STEPS,
    "log_every": 1,
    "evaluate_every": 2,
    "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    "schedule": {"name": "constant", "warmup": 0.0},
}


def padded_loss(model: BertModel, groups: Any) -> torch.Tensor:
    """The loss of rows of (anchor, positive, negative), by transformers' model on padded texts."""
    texts = [torch.tensor([1, *text[:22].tolist(), 2]) for group in groups for text in group]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    vectors = F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    anchors, positives, negatives = vectors[0::3], vectors[1::3], vectors[2::3]
    cosines = anchors @ torch.cat([positives, negatives]).T
    return F.cross_entropy(20 * cosines, torch.arange(len(anchors)))


@pytest.fixture(scope="module")
def plain() -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, without any of Headway's training."""
    torch.manual_seed(0)
    model = BertModel(tiny_bert(0.0, 2), add_pooling_layer=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.999), 1e-6, weight_decay=0.0)
    batches = tiny_groups(batch_size=BATCH)
    found = []
    for step in range(STEPS):
        rows = rows_of_step(0, step, batches.batch_sizes, batches.rows)[1]
        loss = padded_loss(model, [batches.groups[row] for row in rows])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What each layout reported, step after step."""
    phases = [{"name": name, **SETTINGS, **layout} for name, layout in GROUP_LAYOUTS.items()]
    found = train_in_processes(phases, tmp_path_factory.mktemp("contrastive"))
    return {name: [metrics for _, metrics in result["history"]] for name, result in found.items()}


@pytest.mark.parametrize("layout", GROUP_LAYOUTS)
def test_every_layout_trains_by_the_loss_of_the_whole_batch(layout, results, plain):
    steps = results[layout][1:]
    assert [m["embedding_loss"] for m in steps] == pytest.approx([loss for loss, _ in plain], rel=1e-4)
    assert [m["gradient_norm"] for m in steps] == pytest.approx([norm for _, norm in plain], rel=2e-3)


@pytest.mark.parametrize("layout", GROUP_LAYOUTS)
def test_every_layout_measures_the_same_validation_loss(layout, results):
    scored, expected = (
        [metrics["validation_scored"] for metrics in results[name] if "validation_scored" in metrics]
        for name in (layout, "one worker")
    )
    assert len(scored) == 3
    assert scored == pytest.approx(expected, rel=1e-4)


def test_the_validation_loss_is_over_rows_in_their_order():
    trainer, history = train(None, **SETTINGS | {"validation_rows": 20})
    model = BertModel(tiny_bert(0.0, 2), add_pooling_layer=False).eval()
    model.load_state_dict(trainer.objective.model.state_dict())
    groups = tiny_groups(rows=20).groups
    with torch.no_grad():
        expected = (padded_loss(model, groups[:12]) * 12 + padded_loss(model, groups[12:]) * 8) / 20
    assert history[-1][1]["validation_scored"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"activation_checkpointing": True}])
def test_with_dropout_backward_computes_the_vectors_that_the_loss_saw(settings):
    """The same gradient as if what backward needs had been kept of all micro-batches."""
    config = tiny_config(gradient_accumulation=2, max_grad_norm=1e9, steps=1, **settings)
    trainer, other = (
        Trainer(tiny_contrastive_objective(dropout=0.3), tiny_groups(), config) for _ in range(2)
    )
    reference: Any = other.optimizer_step.compute.module
    vectors = []
    for part, batch in enumerate(tiny_groups().micro_batches(0, 0, 1, 2)):
        torch.manual_seed(derived_seed(0, 0, part))
        vectors.append(reference.train().outputs(batch))
    anchors, positives, negatives = torch.cat(vectors).unflatten(0, (-1, 3)).unbind(1)
    cosines = anchors @ torch.cat([positives, negatives]).T
    F.cross_entropy(20 * cosines, torch.arange(BATCH)).backward()
    gradients = [weight.grad.float() for weight in reference.parameters() if weight.grad is not None]
    expected = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
    seen = []
    trainer.add_hook(lambda info: seen.append(info.metrics["gradient_norm"]))
    trainer.run()
    assert seen == [pytest.approx(expected.item(), rel=1e-2 if settings.get("precision") else 1e-4)]


def test_what_a_teacher_says_to_each_micro_batch_joins_the_loss_of_the_step():
    objective = tiny_contrastive_objective(0.0)
    objective.distillation = Distillation(
        DistillConfig(teacher="t", labels=0.25), objective.output_kind, objective.model
    )
    made = tiny_groups(batch_size=6).micro_batches(0, 0, 1, 2)
    generator = torch.Generator().manual_seed(0)
    taught = [F.normalize(torch.randn(len(b.lengths), 8, generator=generator), dim=-1) for b in made]
    batches = [replace(batch, taught=said) for batch, said in zip(made, taught, strict=True)]
    with torch.no_grad():
        vectors = [objective.outputs(batch) for batch in batches]
    sizes = [len(part) for part in vectors]
    counts = {"embedding": 6, "distillation": 6}
    step = ContrastiveStep(objective, Worker(device=torch.device("cpu")), [sum(sizes)], counts)
    step.see(vectors)
    first = 0
    for number, batch in enumerate(batches):
        found = step(objective, batch, number)
        whole = loss_among_all(torch.cat(vectors), 3, first, first + sizes[number]).total
        torch.testing.assert_close(found["embedding"], 0.25 * whole / 6)
        imitation = objective.distillation(vectors[number], batch) * objective.count(batch) / 6
        torch.testing.assert_close(found["distillation"], imitation)
        first += sizes[number]
    assert objective.predictions(batches[0]) == {"embedding": 3, "distillation": 3}
