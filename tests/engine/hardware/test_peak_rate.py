"""The machine's own speed is measured quickly, whatever the machine can do."""

from __future__ import annotations

import time

import pytest
import torch

from headway.engine.hardware import peak_rate

CPU = torch.device("cpu")


def test_a_rate_is_operations_over_seconds(monkeypatch):
    monkeypatch.setattr(peak_rate, "_seconds_of_product", lambda left, right: 0.01)
    assert peak_rate.matrix_product_rate.__wrapped__(torch.float32, CPU) == pytest.approx(2 * 2048**3 / 0.01)


def test_a_product_that_takes_long_is_not_tried_in_full_size(monkeypatch):
    sizes = []

    def slow(left, right):
        sizes.append(len(left))
        return 4.0

    monkeypatch.setattr(peak_rate, "_seconds_of_product", slow)
    assert peak_rate.matrix_product_rate.__wrapped__(torch.bfloat16, CPU) == pytest.approx(2 * 256**3 / 4.0)
    assert set(sizes) == {256}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_seconds_at_most(dtype):
    started = time.monotonic()
    assert peak_rate.matrix_product_rate.__wrapped__(dtype, CPU) > 0
    assert time.monotonic() - started < 60
