"""How many replicas the tokens to compute are worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.serving.autoscaling import UNANSWERED, UnansweredTokensPolicy


@pytest.mark.parametrize(
    ("reported", "requests", "replicas"),
    [({}, 0, 0), ({}, 3, 1), ({"a": 1.0}, 0, 1), ({"a": 100.0}, 1, 1), ({"a": 10.0, "b": 101.0}, 1, 2)],
)
def test_a_replica_is_wanted_for_each_batch_of_tokens_to_compute(reported, requests, replicas):
    metrics = {UNANSWERED: reported} if reported else {}
    context = SimpleNamespace(aggregated_metrics=metrics, total_num_requests=requests)
    assert UnansweredTokensPolicy(100)(context) == (replicas, {})
