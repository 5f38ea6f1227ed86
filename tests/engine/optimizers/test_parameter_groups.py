"""Learning rates by depth: each layer's is a fraction of that of the layer above it."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_encoders import CONFIGS
from torch import nn

from headway.config.training import OptimizerConfig
from headway.engine.optimizers.build import build_optimizer
from headway.engine.optimizers.parameter_groups import parameter_groups, with_layerwise_lr_decay

RATE, DECAY = 0.01, 0.5
# Of an encoder with two layers: its heads, the last layer, the first one, the embeddings.
HEADS, LAST, FIRST, EMBEDDINGS = (RATE * DECAY**depth for depth in range(4))
EXPECTED = {
    "bert": {
        "classifier.weight": HEADS,
        "classifier.bias": HEADS,
        "bert.pooler.dense.weight": HEADS,
        "bert.encoder.layer.1.output.dense.weight": LAST,
        "bert.encoder.layer.1.output.LayerNorm.bias": LAST,
        "bert.encoder.layer.0.attention.self.query.weight": FIRST,
        "bert.embeddings.word_embeddings.weight": EMBEDDINGS,
        "bert.embeddings.LayerNorm.weight": EMBEDDINGS,
    },
    "roberta": {
        "classifier.dense.weight": HEADS,
        "roberta.encoder.layer.1.output.dense.bias": LAST,
        "roberta.encoder.layer.0.output.dense.bias": FIRST,
        "roberta.embeddings.position_embeddings.weight": EMBEDDINGS,
    },
    "distilbert": {
        "pre_classifier.weight": HEADS,
        "distilbert.transformer.layer.1.ffn.lin1.weight": LAST,
        "distilbert.transformer.layer.0.ffn.lin1.weight": FIRST,
        "distilbert.embeddings.LayerNorm.weight": EMBEDDINGS,
    },
    "electra": {
        "classifier.dense.weight": HEADS,
        "electra.encoder.layer.1.output.dense.weight": LAST,
        "electra.encoder.layer.0.output.dense.weight": FIRST,
        "electra.embeddings_project.weight": EMBEDDINGS,
        "electra.embeddings.word_embeddings.weight": EMBEDDINGS,
    },
    "modernbert": {
        "classifier.weight": HEADS,
        "model.final_norm.weight": HEADS,
        "model.layers.1.mlp.Wi.weight": LAST,
        "model.layers.0.mlp.Wi.weight": FIRST,
        "model.embeddings.tok_embeddings.weight": EMBEDDINGS,
    },
}


def classifier(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[kind])


@pytest.mark.parametrize("kind", CONFIGS)
def test_rates_fall_from_the_heads_to_the_embeddings(kind):
    model = classifier(kind)
    groups = with_layerwise_lr_decay(model, parameter_groups(model, 0.1), RATE, DECAY)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = dict(model.named_parameters())
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(names)
    assert {name: rates[id(names[name])] for name in EXPECTED[kind]} == pytest.approx(EXPECTED[kind])
    assert set(rates.values()) == {HEADS, LAST, FIRST, EMBEDDINGS}


def test_matrices_of_every_depth_are_decayed_and_vectors_are_not():
    model = classifier("bert")
    groups = with_layerwise_lr_decay(model, parameter_groups(model, 0.1), RATE, DECAY)
    for group in groups:
        assert {parameter.dim() >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_a_step_moves_each_weight_as_adamw_does_at_its_own_rate():
    """An AdamW of PyTorch for each weight alone."""
    model, reference = classifier("bert"), classifier("bert")
    generator = torch.Generator().manual_seed(1)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        other.grad = one.grad.clone()
    config = OptimizerConfig(learning_rate=RATE, weight_decay=0.1, layerwise_lr_decay=DECAY)
    build_optimizer(model, config).step()
    for name, weight in reference.named_parameters():
        layer = {"layer.1.": LAST, "layer.0.": FIRST, "embeddings.": EMBEDDINGS}
        rate = next((rate for part, rate in layer.items() if part in name), HEADS)
        decay = 0.1 if weight.dim() >= 2 else 0.0
        torch.optim.AdamW([weight], lr=rate, betas=config.betas, eps=config.eps, weight_decay=decay).step()
        torch.testing.assert_close(model.get_parameter(name), weight, msg=name)


def test_without_a_factor_all_weights_have_the_same_rate():
    optimizer = build_optimizer(classifier("bert"), OptimizerConfig(learning_rate=RATE))
    assert {group["lr"] for group in optimizer.param_groups} == {RATE}
