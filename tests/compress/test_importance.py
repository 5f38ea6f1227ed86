"""Importance against activations and gradients that transformers and autograd give, text by text."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import LENGTHS, build

from headway.compress.importance import dropping_order, least_harmful_layers, unit_importance, unit_magnitude
from headway.data.batch import Batch
from headway.engine.model.lora import keep_layers
from headway.engine.model.unpadded import encoder_layers, run_unpadded
from headway.engine.training.objectives import ClassificationObjective

KINDS = ["bert", "distilbert", "modernbert"]
OUT = {"bert": "attention.output.dense", "distilbert": "attention.out_lin", "modernbert": "attn.Wo"}
DOWN = {"bert": "output.dense", "distilbert": "ffn.lin2", "modernbert": "mlp.Wo"}
NOTHING = torch.empty(0, dtype=torch.int64)


@pytest.fixture(params=KINDS)
def model(request):
    # A copy, since a model and the configuration that it is built from are otherwise one.
    return copy.deepcopy(build(request.param, "SequenceClassification").float())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor(LENGTHS)
    tokens = int(lengths.sum())
    return Batch.of(
        input_ids=torch.randint(5, 61, (tokens,), generator=generator),
        token_type_ids=torch.zeros(tokens, dtype=torch.int64),
        lengths=lengths,
        labels=torch.arange(len(lengths)) % 2,
        masked_positions=NOTHING,
        masked_labels=NOTHING,
        row_ids=torch.arange(len(lengths)),
    )


def of_one_text(model, ids, label):
    """activation x gradient of one text: by group, shape (units,)."""
    kind = model.config.model_type
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(group):
        def hook(module, inputs, *output):
            value = output[0] if output else inputs[0]
            value = value[0] if isinstance(value, tuple) else value
            value.retain_grad()
            seen.setdefault(group, []).append(value)

        return hook

    hooks = []
    for number, layer in enumerate(encoder_layers(model)):
        for group, name in (("heads", OUT[kind]), ("neurons", DOWN[kind])):
            module = layer.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(keep(f"{group}.{number}")))
        hooks.append(layer.register_forward_hook(keep("hidden")))
    hooks.append(encoder_layers(model)[0].register_forward_pre_hook(keep("hidden")))
    hooks.append(model.classifier.register_forward_pre_hook(keep("pooled")))
    loss = F.cross_entropy(model(input_ids=ids[None]).logits, label[None])
    loss.backward()
    for hook in hooks:
        hook.remove()
    return {group: by_unit(group, values) for group, values in seen.items()}


def by_unit(group, values):
    columns = torch.stack([(value * value.grad).flatten(0, -2).sum(0) for value in values]).sum(0)
    return columns.unflatten(0, (4, -1)).sum(1) if group.startswith("heads") else columns


def test_importance_is_the_mean_size_of_activation_times_gradient(model, batch):
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    texts = batch.input_ids.split(batch.lengths.tolist())
    rows = [of_one_text(plain, ids, label) for ids, label in zip(texts, batch.labels, strict=True)]
    run_unpadded(model)
    actual = unit_importance(ClassificationObjective(model), [batch])
    assert set(actual) == set(rows[0])
    for group, found in actual.items():
        expected = torch.stack([row[group] for row in rows]).abs().mean(0)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6, msg=group)
    assert actual["heads.0"].min() > 0


def test_importance_does_not_depend_on_batches_and_leaves_no_hooks(model, batch):
    run_unpadded(model)
    objective = ClassificationObjective(model)
    whole = unit_importance(objective, [batch])
    starts = np.cumsum([0, *LENGTHS])
    parts = [
        Batch.of(
            input_ids=batch.input_ids[starts[first] : starts[last]],
            token_type_ids=batch.token_type_ids[starts[first] : starts[last]],
            lengths=batch.lengths[first:last],
            labels=batch.labels[first:last],
            masked_positions=NOTHING,
            masked_labels=NOTHING,
            row_ids=batch.row_ids[first:last],
        )
        for first, last in ((0, 2), (2, 6))
    ]
    in_parts = unit_importance(objective, parts)
    for group, value in whole.items():
        torch.testing.assert_close(in_parts[group], value, rtol=1e-3, atol=1e-6)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_magnitude_is_the_norm_of_a_unit_s_weights():
    model = build("bert", "SequenceClassification").float()
    magnitude = unit_magnitude(model)
    layer: Any = encoder_layers(model)[1]
    attention = layer.attention.self
    rows = [part.weight[8:16] for part in (attention.query, attention.key, attention.value)]
    rows += [part.bias[8:16] for part in (attention.query, attention.key, attention.value)]
    rows.append(layer.attention.output.dense.weight[:, 8:16])
    expected = torch.cat([row.flatten() for row in rows]).norm()
    torch.testing.assert_close(magnitude["heads.1"][1], expected)
    neuron = [layer.intermediate.dense.weight[7], layer.intermediate.dense.bias[7:8]]
    neuron.append(layer.output.dense.weight[:, 7])
    torch.testing.assert_close(magnitude["neurons.1"][7], torch.cat(neuron).norm())


def test_the_layer_that_does_least_is_dropped_first(model, batch):
    run_unpadded(model)
    layers = encoder_layers(model)
    layers.extend(copy.deepcopy(layer) for layer in list(layers))
    model.config.num_hidden_layers = 4
    if model.config.model_type == "modernbert":
        model.config.layer_types = model.config.layer_types * 2
    objective = ClassificationObjective(model).eval()

    def loss_of(kept):
        smaller = copy.deepcopy(model)
        keep_layers(smaller, kept)
        around = ClassificationObjective(smaller).eval()
        return float(around.loss(around.outputs(batch), batch).total.detach())

    allowed = [1, 2, 3] if model.config.model_type == "modernbert" else [0, 1, 2, 3]
    losses = {number: loss_of([n for n in range(4) if n != number]) for number in allowed}
    first = min(losses, key=lambda number: losses[number])
    assert least_harmful_layers(objective, [batch], 3) == [n for n in range(4) if n != first]
    assert len(least_harmful_layers(objective, [batch], 1)) == 1
    order = dropping_order(objective, [batch])
    assert sorted(order) == list(range(4))
    for count in (1, 2, 3, 4):
        assert least_harmful_layers(objective, [batch], count) == sorted(order[-count:])
