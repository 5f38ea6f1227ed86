"""Attention of short sequences in one tile, by Triton's interpreter, against PyTorch a sequence at a time."""

import pytest
import torch
import torch.nn.functional as F

from headway.engine.model.short_attention import LONGEST, attend_short


def one_at_a_time(qkv, lengths, heads, window, scale):
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).unbind(1)
    parts = []
    for trio in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        positions = torch.arange(len(trio[0]))
        near = None if window is None else (positions[:, None] - positions).abs() < window
        one, other, last = (part.transpose(0, 1) for part in trio)
        attended = F.scaled_dot_product_attention(one, other, last, attn_mask=near, scale=scale)
        parts.append(attended.transpose(0, 1).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim", "window", "scale"),
    [
        ([5, 23, 1, 100, 64, LONGEST, 33], 3, 64, None, None),
        ([32, 31, 2], 2, 32, None, 0.3),
        ([5, 70, 90], 2, 20, 7, None),
    ],
)
def test_outputs_and_gradients_are_those_of_a_sequence_at_a_time(lengths, heads, head_dim, window, scale):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3 * heads * head_dim, requires_grad=True)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    actual = attend_short(qkv, ends, heads, max(lengths), window=window, scale=scale)
    expected = one_at_a_time(qkv, lengths, heads, window, scale)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(actual, qkv, direction)
    (wanted,) = torch.autograd.grad(expected, qkv, direction)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_sequences_without_tokens_change_nothing():
    torch.manual_seed(0)
    qkv = torch.randn(12, 3 * 32)
    plain = attend_short(qkv, torch.tensor([0, 7, 12], dtype=torch.int32), 2, 7)
    filled = attend_short(qkv, torch.tensor([0, 7, 12, 12, 12], dtype=torch.int32), 2, 7)
    assert torch.equal(plain, filled)
