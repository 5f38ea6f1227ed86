"""LAMB against the formulas of its paper in float64, and what it asks of a GPU."""

from typing import Any

import pytest
import torch
import transformers
from gpu_stand_in import META, Operations
from torch import nn

from headway.config.training import OptimizerConfig
from headway.engine.optimizers.build import build_optimizer
from headway.engine.optimizers.lamb import Lamb

RATE, DECAY, EPS, BETAS = 0.01, 0.1, 1e-6, (0.9, 0.98)
CONFIG = OptimizerConfig(name="lamb", learning_rate=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)


def by_the_paper(weight, gradients, decay=DECAY, adapts=True):
    """You et al. 2019, algorithm 2, in float64."""
    weight = weight.detach().double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient.double()
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.double() ** 2
        ratio = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPS)
        update = ratio + decay * weight
        factor = 1.0
        if adapts and weight.norm() > 0 and update.norm() > 0:
            factor = weight.norm() / update.norm()
        weight = weight - RATE * factor * update
    return weight


def take_steps(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()


def random_gradients(*shape, steps=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) * 10**-step for step in range(steps)]


@pytest.mark.parametrize("norm", [1.0, 96.0, 0.0])
def test_lamb_takes_the_steps_of_its_paper(norm):
    """The embeddings of BERT-base have a norm of 96; with a cap at 10 they would hardly move."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=False)
    with torch.no_grad():
        layer.weight.mul_(norm / layer.weight.norm())
    gradients = random_gradients(20, 30)
    expected = by_the_paper(layer.weight, gradients)
    before = layer.weight.detach().clone()
    take_steps(build_optimizer(layer, CONFIG), layer.weight, gradients)
    moved, wanted = layer.weight.detach().double() - before, expected - before
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6 * max(norm, 1.0))


def test_biases_and_norms_move_by_adams_step():
    norm = nn.LayerNorm(7)
    gradients = random_gradients(7)
    expected = by_the_paper(norm.weight, gradients, decay=0.0, adapts=False)
    take_steps(build_optimizer(norm, CONFIG), norm.weight, gradients)
    torch.testing.assert_close(norm.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_a_weight_without_gradient_and_decay_stays():
    layer = nn.Linear(3, 2, bias=False)
    optimizer: Any = build_optimizer(layer, CONFIG.model_copy(update={"weight_decay": 0.0}))
    before = layer.weight.detach().clone()
    take_steps(optimizer, layer.weight, [torch.zeros(2, 3)])
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_found_inf_leaves_every_bit_as_it_is(value):
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    with torch.no_grad():
        model[0].weight[0, :2] = torch.tensor([0.0, -0.0])
    optimizer: Any = build_optimizer(model, CONFIG)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    before = bits(optimizer)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, value)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert bits(optimizer) == before
    optimizer.found_inf = torch.zeros(())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert bits(optimizer) != before


def bits(optimizer):
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    tensors = [*weights, *(value for weight in weights for value in optimizer.state[weight].values())]
    return [tensor.detach().view(torch.int32).tolist() for tensor in tensors]


def test_steps_with_found_inf_of_0_are_those_without_it():
    gradients = random_gradients(2, 3)
    moved = []
    for found_inf in (None, torch.zeros(())):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2, bias=False)
        optimizer: Any = build_optimizer(layer, CONFIG)
        optimizer.found_inf = found_inf
        take_steps(optimizer, layer.weight, gradients)
        moved.append(layer.weight.detach())
    assert torch.equal(*moved)


def test_a_step_of_bert_base_is_30_operations_and_reads_nothing_back():
    """A loop over its 200 weights would be some thousands; reading is an error on this device."""
    with META:
        model = transformers.BertForMaskedLM(transformers.BertConfig())
    optimizer: Any = build_optimizer(model, CONFIG)
    assert isinstance(optimizer, Lamb)
    optimizer.found_inf = torch.zeros((), device=META)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    with Operations() as seen:
        optimizer.step()
    assert seen.counts.total() <= 30, seen.counts.most_common(20)
