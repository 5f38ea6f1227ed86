"""The way to a GPU's fused kernels, against attention a sequence at a time.

The kernels themselves need a GPU. Here plain loops that keep to their documentation stand in for them, so
what is tested is what they are asked for; on the meta device it is which of them is asked.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from headway.engine.model import gpu_attention, window_attention
from headway.engine.model.gpu_attention import attend_fused
from headway.engine.model.layout import layout_of_lengths

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
        positions = torch.arange(len(trio[0]))
        near = None if window is None else (positions[:, None] - positions).abs() < window
        parts.append(by_heads(*trio, near, scale))
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("window", [None, 4])
def test_padded_blocks_equal_a_sequence_at_a_time(scale, window):
    query, key, value = inputs = row(0)  # float64, which no fused kernel takes
    expected = one_at_a_time(query, key, value, window, scale)
    actual = attend_fused(query, key, value, 0.0, layout_of_lengths(torch.tensor(LENGTHS)), window, scale)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dropout_drops_the_share_asked_for():
    torch.manual_seed(0)
    layout = layout_of_lengths(torch.tensor([64] * 8))
    query = torch.zeros(512, 4, 8, dtype=torch.float64)
    attended = attend_fused(query, query, torch.ones_like(query), 0.25, layout, None, None)
    # Each of 64 equal weights is dropped or scaled by 4/3: mean 1, deviation sqrt(p / (1 - p) / 64) = 0.072.
    assert attended.mean().item() == pytest.approx(1.0, abs=0.01)
    assert attended.std().item() == pytest.approx(0.072, rel=0.1)


@pytest.mark.parametrize("window", [None, 4])
def test_flash_attention_is_asked_for_windows_as_it_counts_them(window, monkeypatch):
    def documented(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (max_q, max_k) == (max(LENGTHS), max(LENGTHS))
        left, right = window_size
        parts = []
        for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            positions = torch.arange(end - start)
            ahead = positions - positions[:, None]
            mask = ((ahead >= -left) | (left == -1)) & ((ahead <= right) | (right == -1))
            parts.append(by_heads(query[start:end], key[start:end], value[start:end], mask, scale))
        return torch.cat(parts)

    monkeypatch.setattr(gpu_attention, "varlen_attn", documented)
    monkeypatch.setattr(gpu_attention, "_has_flash_attention", lambda device: True)
    query, key, value = row(1, torch.bfloat16)
    actual = attend_fused(query, key, value, 0.0, layout_of_lengths(torch.tensor(LENGTHS)), window, None)
    torch.testing.assert_close(actual, one_at_a_time(query, key, value, window=window))


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        self.names.add(str(function))
        return function(*arguments, **(settings or {}))


@pytest.mark.parametrize(
    ("dtype", "head_dim", "dropout", "window", "kernel"),
    [
        (torch.bfloat16, 64, 0.0, None, "torch_attn._varlen_attn.default"),
        (torch.bfloat16, 64, 0.0, 65, "headway.attend_window.default"),
        (torch.float16, 128, 0.0, 129, "headway.attend_window.default"),
        (torch.bfloat16, 64, 0.0, 130, "torch_attn._varlen_attn.default"),
        (torch.bfloat16, 136, 0.0, 65, "torch_attn._varlen_attn.default"),
        (torch.float16, 64, 0.1, 64, "aten._flash_attention_forward.default"),
        (torch.float32, 64, 0.1, None, "aten._efficient_attention_forward.default"),
        (torch.float32, 64, 0.0, 64, "aten.index_copy.default"),
        (torch.bfloat16, 20, 0.0, None, "aten.index_copy.default"),
    ],
)
def test_the_fastest_kernel_that_can_do_it_is_taken(dtype, head_dim, dropout, window, kernel, monkeypatch):
    monkeypatch.setattr(gpu_attention, "window_attention", window_attention)
    assert kernel in operators_of_attention(dtype, head_dim, dropout, window)


def test_flash_attention_takes_windows_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(gpu_attention, "window_attention", None)
    assert "torch_attn._varlen_attn.default" in operators_of_attention(torch.bfloat16, 64, 0.0, 65)


def operators_of_attention(dtype, head_dim, dropout, window):
    """Names of those that run forward and backward on the device that stands for a GPU."""
    layout = layout_of_lengths(torch.tensor(LENGTHS), torch.device("meta"))
    query, key, value = (
        torch.empty(sum(LENGTHS), 4, head_dim, dtype=dtype, device="meta", requires_grad=True)
        for _ in range(3)
    )
    with Operators() as seen:
        attended = attend_fused(query, key, value, dropout, layout, window, None)
        attended.sum().backward()
    assert query.grad is not None
    assert attended.shape == query.shape == query.grad.shape
    return seen.names
