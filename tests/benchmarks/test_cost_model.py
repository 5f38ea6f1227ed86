"""The cost model says what can be worked out by hand, and names what a step waits for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lib.cost_model import Encoder, Link, Machine, all_reduce_seconds, step_cost
from transformers import BertConfig, BertForPreTraining

SMALL = Encoder(weights=1_000_000, trunk_weights=800_000, attention_width=0, head_weights=0)
GPU = Machine(
    rate=1e12,
    update_seconds=1e-9,
    inside=Link(1e9, 1e-6),
    between=Link(1e8, 1e-5),
    workers=8,
    units=8,
    overlaps=False,
    gradient_bytes=2,
    loader_rate=1e9,
    dealing_seconds=0.0,
    copy_rate=1e12,
    storage_rate=1e12,
)


def test_a_bert_has_the_weights_that_transformers_gives_it():
    shape = Encoder.bert(12, 768, 30_522)
    model = BertForPreTraining(BertConfig())
    assert shape.weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_arithmetic_is_six_operations_a_weight_and_token():
    assert SMALL.flops(10, 64) == 6 * 800_000 * 640


def test_one_worker_exchanges_nothing():
    cost = step_cost(SMALL, GPU, 1, 10, 64)
    assert cost.exchange == 0.0
    assert cost.seconds == pytest.approx(cost.compute + cost.update)


def test_two_workers_each_send_the_gradients_once():
    assert all_reduce_seconds(GPU, 1e6, 2) == pytest.approx(1e6 / 1e9 + 2e-6)


def test_between_machines_each_worker_sends_its_part():
    inside, between = 2 * 7 / 8 * 1e6 / 1e9, 2 * 1 / 2 * 1e6 / 8 / 1e8
    assert all_reduce_seconds(GPU, 1e6, 16) == pytest.approx(inside + between + 2 * (3e-6 + 1e-5))


def test_workers_that_share_units_take_turns():
    alone, crowd = (step_cost(SMALL, replace(GPU, units=2), n, 10, 64) for n in (2, 4))
    assert crowd.compute == pytest.approx(2 * alone.compute)


def test_what_travels_during_the_backward_pass_is_hidden_but_for_the_last_bucket():
    slow = replace(GPU, rate=1e9, overlaps=True, bucket_bytes=5e5)
    whole = all_reduce_seconds(slow, 2e6, 8)
    assert step_cost(SMALL, slow, 8, 10, 64).exchange == pytest.approx(whole / 4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rate": 1e9}, "compute"),
        ({"inside": Link(1e7, 1e-6)}, "all-reduce"),
        ({"update_seconds": 1e-6}, "optimizer"),
        ({"loader_rate": 1e3}, "loader"),
        ({"dealing_seconds": 1.0}, "loader"),
        ({"storage_rate": 1e5}, "writing states"),
        ({"copy_rate": 1e5}, "copying states"),
    ],
)
def test_the_bottleneck_is_named(change, expected):
    assert step_cost(SMALL, replace(GPU, **change), 8, 10, 64, states_every=10).bottleneck == expected
