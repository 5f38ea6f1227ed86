"""Masked words and parts of texts that find each other: both losses, over the whole step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_training import GROUP_LAYOUTS, tiny_bert, tiny_groups, train, train_in_processes
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForMaskedLM

from headway.data.sampling import rows_of_step

STEPS, BATCH, RATE = 4, 12, 1e-3
SETTINGS: dict[str, Any] = {
    "contrastive": True,
    "pretraining": True,
    "dropout": 0.0,
    "steps": STEPS,
    "log_every": 1,
    "evaluate_every": 2,
    "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
    "schedule": {"name": "constant", "warmup": 0.0},
}


def padded_losses(model: BertForMaskedLM, groups: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both mean losses of rows of two texts, by transformers' model on padded texts."""
    texts = [torch.tensor([1, *text[:22].tolist(), 2]) for group in groups for text in group]
    labels = [torch.full_like(text, -100) for text in texts]
    for text, label in zip(texts, labels, strict=True):
        label[1:3] = text[1:3]
        text[1:3] = 4
    ids, wanted = pad_sequence(texts, batch_first=True), pad_sequence(labels, True, -100)
    mask = pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True)
    hidden = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
    words = F.cross_entropy(model.cls(hidden).flatten(0, 1), wanted.flatten())
    vectors = F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    found = F.cross_entropy(20 * vectors[0::2] @ vectors[1::2].T, torch.arange(len(groups)))
    return words, found


@pytest.fixture(scope="module")
def plain() -> list[tuple[float, float, float]]:
    """Both losses and the gradient's norm at each step, without any of Headway's training."""
    torch.manual_seed(0)
    model = BertForMaskedLM(tiny_bert(0.0, 2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.999), 1e-6, weight_decay=0.0)
    batches = tiny_groups(batch_size=BATCH, pretraining=True)
    seen = []
    for step in range(STEPS):
        rows = rows_of_step(0, step, batches.batch_sizes, batches.rows)[1]
        words, found = padded_losses(model, [batches.groups[row] for row in rows])
        optimizer.zero_grad()
        (words + found).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen.append((words.item(), found.item(), norm.item()))
    return seen


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What each layout reported, step after step."""
    phases = [{"name": name, **SETTINGS, **layout} for name, layout in GROUP_LAYOUTS.items()]
    found = train_in_processes(phases, tmp_path_factory.mktemp("contrastive-pretraining"))
    return {name: [metrics for _, metrics in result["history"]] for name, result in found.items()}


@pytest.mark.parametrize("layout", GROUP_LAYOUTS)
def test_every_layout_trains_by_both_losses_of_the_whole_batch(layout, results, plain):
    steps = results[layout][1:]
    for index, name in enumerate(("mlm_loss", "contrastive_loss", "gradient_norm")):
        expected = [step[index] for step in plain]
        assert [metrics[name] for metrics in steps] == pytest.approx(expected, rel=2e-3), name


def test_validation_measures_both_losses_batch_by_batch():
    trainer, history = train(None, **SETTINGS | {"validation_rows": 20})
    model = BertForMaskedLM(tiny_bert(0.0, 2)).eval()
    model.load_state_dict(trainer.objective.model.state_dict())
    batches = tiny_groups(rows=20, batch_size=BATCH, pretraining=True)
    # Validation rows are taken in order of their length.
    order = batches.lengths.argsort(kind="stable")
    parts = [[batches.groups[row] for row in rows] for rows in (order[:BATCH], order[BATCH:])]
    with torch.no_grad():
        losses = [torch.stack(padded_losses(model, part)) * len(part) / 20 for part in parts]
    words, found = torch.stack(losses).sum(0).tolist()
    assert history[-1][1]["validation_mlm_loss"] == pytest.approx(words, rel=1e-4)
    assert history[-1][1]["validation_contrastive_loss"] == pytest.approx(found, rel=1e-4)
