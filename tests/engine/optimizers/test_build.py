"""Optimizers and schedules by name, against closed forms and against transformers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

from headway.config.training import OptimizerConfig, ScheduleConfig
from headway.engine.optimizers.build import build_optimizer
from headway.engine.optimizers.parameter_groups import parameter_groups
from headway.engine.optimizers.schedules import build_schedule, skip_to

TOTAL = 50


def one_matrix() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.grad = torch.randn(3, 4)
    return layer


def weight_and_gradient(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.weight.grad is not None
    return layer.weight.detach().clone(), layer.weight.grad.clone()


def test_adamw_takes_the_step_of_its_paper():
    """Loshchilov and Hutter 2019, algorithm 2, first step."""
    layer = one_matrix()
    weight, gradient = weight_and_gradient(layer)
    config = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.1, eps=1e-8)
    build_optimizer(layer, config).step()
    expected = weight * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_lion_moves_by_the_sign():
    """Chen et al. 2023, algorithm 2, first step."""
    layer = one_matrix()
    weight, gradient = weight_and_gradient(layer)
    build_optimizer(layer, OptimizerConfig(name="lion", learning_rate=0.01, weight_decay=0.0)).step()
    torch.testing.assert_close(layer.weight.detach(), weight - 0.01 * gradient.sign())


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "adafactor"])
def test_every_optimizer_lowers_a_loss(name):
    torch.manual_seed(0)
    model, inputs = nn.Linear(8, 1), torch.randn(64, 8)
    targets = inputs @ torch.arange(8.0)[:, None] / 8
    optimizer = build_optimizer(model, OptimizerConfig(name=name, learning_rate=0.02))
    losses = []
    for _ in range(100):
        loss = (model(inputs) - targets).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_biases_and_norms_are_not_decayed_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    decayed, plain = parameter_groups(model, weight_decay=0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[1].weight)}
    assert {id(p) for p in plain["params"]} == {id(model[1].bias), id(model[2].weight), id(model[2].bias)}


def rates(schedule, optimizer) -> list[float]:
    seen = []
    for _ in range(TOTAL):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("linear", lambda opt: get_linear_schedule_with_warmup(opt, 0, TOTAL)),
        ("cosine", lambda opt: get_cosine_schedule_with_warmup(opt, 0, TOTAL)),
        ("constant", lambda opt: get_constant_schedule_with_warmup(opt, 0)),
        ("polynomial", lambda opt: get_polynomial_decay_schedule_with_warmup(opt, 0, TOTAL, 0.0, power=2.0)),
        ("wsd", lambda opt: get_wsd_schedule(opt, 0, TOTAL // 5, TOTAL, decay_type="linear")),
    ],
)
def test_without_warmup_a_schedule_is_that_of_transformers(name, theirs):
    ours, reference = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    schedule = build_schedule(ours, ScheduleConfig(name=name, warmup=0.0), TOTAL)
    assert rates(schedule, ours) == pytest.approx(rates(theirs(reference), reference), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_after_warmup_a_schedule_is_that_of_transformers(name, theirs):
    warmup = 10
    ours, reference = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    seen = rates(build_schedule(ours, ScheduleConfig(name=name, warmup=warmup / TOTAL), TOTAL), ours)
    assert seen[warmup:] == pytest.approx(
        rates(theirs(reference, warmup, TOTAL), reference)[warmup:], abs=1e-9
    )


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_a_polynomial_decay_is_that_of_transformers_whatever_its_power(power):
    warmup = 10
    ours, reference = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    config = ScheduleConfig(name="polynomial", warmup=warmup / TOTAL, power=power)
    theirs = get_polynomial_decay_schedule_with_warmup(reference, warmup, TOTAL, 0.0, power=power)
    seen = rates(build_schedule(ours, config, TOTAL), ours)
    assert seen[warmup:] == pytest.approx(rates(theirs, reference)[warmup:], abs=1e-9)


@pytest.mark.parametrize(("decay", "falling"), [(0.25, 10), (0.5, 20), (1.0, 40)])
def test_wsd_stays_at_the_peak_and_falls_as_transformers_does_over_the_last_steps(decay, falling):
    """A fraction of the 40 steps after warm-up."""
    warmup = 10
    ours, reference = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    config = ScheduleConfig(name="wsd", warmup=warmup / TOTAL, decay=decay)
    theirs = get_wsd_schedule(reference, warmup, falling, TOTAL, decay_type="linear")
    seen = rates(build_schedule(ours, config, TOTAL), ours)
    assert seen[warmup:] == pytest.approx(rates(theirs, reference)[warmup:], abs=1e-9)
    assert seen[warmup : TOTAL - falling] == [0.5] * (TOTAL - falling - warmup)


def test_warmup_rises_in_equal_steps_and_wastes_none_at_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    seen = rates(build_schedule(optimizer, ScheduleConfig(warmup=0.2), TOTAL), optimizer)
    assert seen[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])


@pytest.mark.parametrize("step", [0, 1, 7, 30])
def test_a_resumed_schedule_goes_on_with_the_rates_of_an_untouched_one(step):
    untouched, resumed = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    config = ScheduleConfig(name="cosine", warmup=0.2)
    expected = rates(build_schedule(untouched, config, TOTAL), untouched)
    schedule = build_schedule(resumed, config, TOTAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skip_to(schedule, step)
    assert rates(schedule, resumed)[: TOTAL - step] == expected[step:]


def test_phases_scale_the_schedule_each_from_its_first_step_on():
    config = ScheduleConfig(name="linear", warmup=0.1)
    plain, scaled = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    expected = rates(build_schedule(plain, config, TOTAL), plain)
    seen = rates(build_schedule(scaled, config, TOTAL, scales=[(0, 1.0), (10, 0.5), (15, 0.1)]), scaled)
    factors = [1.0 if step < 10 else 0.5 if step < 15 else 0.1 for step in range(len(expected))]
    assert seen == pytest.approx([rate * factor for rate, factor in zip(expected, factors, strict=True)])


@pytest.mark.parametrize(("total", "first"), [(1, 1 / 2), (2, 1 / 3)])
def test_a_run_all_of_warmup_or_of_one_step_has_a_schedule(total, first):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    build_schedule(optimizer, ScheduleConfig(warmup=0.9), total)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(first)


def with_a_new_head(hidden: int = 6) -> Any:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 2))
    model.new_weights = frozenset(["2.weight", "2.bias"])
    return model


NAMES = ["adamw", "lamb", "lion", "adafactor", "muon", "schedule_free_adamw"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_were_loaded_stay_as_they_are_while_new_ones_are_trained(name):
    model, waiting = with_a_new_head(), 5
    optimizer = build_optimizer(model, OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.1))
    schedule = build_schedule(optimizer, ScheduleConfig(warmup=0.2), TOTAL, waiting)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(waiting + 5):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert moved == [step >= waiting] * 4 + [True] * 2


def test_weights_that_waited_take_the_whole_course_in_the_steps_that_are_left():
    model, waiting = with_a_new_head(), 10
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.5))
    schedule = build_schedule(optimizer, ScheduleConfig(name="cosine", warmup=0.2), TOTAL, waiting)
    seen = []
    for _ in range(TOTAL):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    whole, shorter = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5) for _ in range(2))
    course = ScheduleConfig(name="cosine", warmup=0.2)
    assert [step[0] for step in seen] == rates(build_schedule(whole, course, TOTAL), whole)
    expected = rates(build_schedule(shorter, course, TOTAL - waiting), shorter)[: TOTAL - waiting]
    assert [step[-1] for step in seen] == [0.0] * waiting + expected


@pytest.mark.parametrize("new", [[], ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]])
def test_nothing_waits_if_nothing_is_new_or_everything(new):
    model = with_a_new_head()
    model.new_weights = frozenset(new)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.5))
    build_schedule(optimizer, ScheduleConfig(warmup=0.0), TOTAL, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
