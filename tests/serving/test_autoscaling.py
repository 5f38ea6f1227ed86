"""How many replicas the waiting tokens are worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.serving.autoscaling import WaitingTokensPolicy


@pytest.mark.parametrize(
    ("waiting", "requests", "replicas"),
    [({}, 0, 0), ({}, 3, 1), ({"a": 1.0}, 0, 1), ({"a": 100.0}, 1, 1), ({"a": 10.0, "b": 101.0}, 1, 2)],
)
def test_a_replica_is_wanted_for_each_batch_of_waiting_tokens(waiting, requests, replicas):
    metrics = {"waiting_tokens": waiting} if waiting else {}
    context = SimpleNamespace(aggregated_metrics=metrics, total_num_requests=requests)
    assert WaitingTokensPolicy(100)(context) == (replicas, {})
