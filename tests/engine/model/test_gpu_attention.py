"""The way to a GPU's fused kernels, against attention a sequence at a time.

Nested tensors run on a processor too, by another kernel. `varlen_attn` does not: here a plain loop that keeps
to its documentation stands in for it, so what is tested is what it is asked for.
"""

import pytest
import torch
import torch.nn.functional as F

from headway.engine.model import gpu_attention
from headway.engine.model.gpu_attention import attend_fused, fits_fused_kernel
from headway.engine.model.layout import layout_of_lengths

# By the processor's kernel only; those of a GPU make no such tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

LENGTHS = [5, 23, 1, 12, 23, 8]


def row(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(sum(LENGTHS), 4, 8, dtype=dtype, generator=generator, requires_grad=True)
        for _ in range(3)
    ]


def by_heads(query, key, value, mask, scale):
    query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return attended.transpose(0, 1)


def one_at_a_time(query, key, value, window=None, scale=None):
    parts = []
    for trio in zip(query.split(LENGTHS), key.split(LENGTHS), value.split(LENGTHS), strict=True):
        places = torch.arange(len(trio[0]))
        near = None if window is None else (places[:, None] - places).abs() < window
        parts.append(by_heads(*trio, near, scale))
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_row_with_boundaries_equals_a_sequence_at_a_time(scale):
    query, key, value = inputs = row(0)
    expected = one_at_a_time(query, key, value, scale=scale)
    found = attend_fused(query, key, value, 0.0, layout_of_lengths(torch.tensor(LENGTHS)), None, scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dropout_drops_the_share_asked_for():
    torch.manual_seed(0)
    layout = layout_of_lengths(torch.tensor([64] * 8))
    query = torch.zeros(512, 4, 8)
    value = torch.ones(512, 4, 8)
    attended = attend_fused(query, query, value, 0.25, layout, None, None)
    # Each of 64 equal weights is dropped or scaled by 4/3: mean 1, deviation sqrt(p / (1 - p) / 64) = 0.072.
    assert attended.mean().item() == pytest.approx(1.0, abs=0.01)
    assert attended.std().item() == pytest.approx(0.072, rel=0.1)


def test_window_is_asked_for_as_the_kernel_counts_it(monkeypatch):
    def documented(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (max_q, max_k) == (max(LENGTHS), max(LENGTHS))
        left, right = window_size
        parts = []
        for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            places = torch.arange(end - start)
            ahead = places - places[:, None]
            mask = (ahead >= -left) & (ahead <= right)
            parts.append(by_heads(query[start:end], key[start:end], value[start:end], mask, scale))
        return torch.cat(parts)

    monkeypatch.setattr(gpu_attention, "varlen_attn", documented)
    query, key, value = row(1, torch.bfloat16)
    found = attend_fused(query, key, value, 0.0, layout_of_lengths(torch.tensor(LENGTHS)), 4, None)
    torch.testing.assert_close(found, one_at_a_time(query, key, value, window=4))


def test_windows_with_dropout_or_in_float32_are_left_to_blocks():
    assert fits_fused_kernel(torch.bfloat16, 0.0, 64)
    assert not fits_fused_kernel(torch.bfloat16, 0.1, 64)
    assert not fits_fused_kernel(torch.float32, 0.0, 64)
    assert fits_fused_kernel(torch.float32, 0.1, None)
