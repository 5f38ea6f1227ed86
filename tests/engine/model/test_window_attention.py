"""Attention within a window, by Triton's interpreter, against PyTorch a sequence at a time."""

import pytest
import torch
import torch.nn.functional as F

from headway.engine.model.window_attention import attend_window

LENGTHS = [5, 200, 64, 1, 300, 129]


def ends_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def attended(inputs, ends, window, **settings):
    query, key, value = inputs
    return attend_window(query, key, value, ends, window, **settings)


def one_at_a_time(inputs, lengths, window, scale=None):
    parts = []
    for trio in zip(*(tensor.split(lengths) for tensor in inputs), strict=True):
        positions = torch.arange(len(trio[0]))
        near = (positions[:, None] - positions).abs() < window
        one, other, last = (part.transpose(0, 1) for part in trio)
        heads = F.scaled_dot_product_attention(one, other, last, attn_mask=near, scale=scale)
        parts.append(heads.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim", "window", "scale"),
    [
        (LENGTHS, 2, 64, 65, None),
        (LENGTHS, 1, 32, 129, 0.3),
        (LENGTHS, 1, 20, 7, None),
        ([70, 66], 1, 80, 66, None),
        ([130, 3], 2, 16, 1, None),
        ([70, *[0] * 140, 3, 66], 1, 16, 65, None),  # more sequences than are looked at together
    ],
)
def test_outputs_and_gradients_are_those_of_a_sequence_at_a_time(lengths, heads, head_dim, window, scale):
    torch.manual_seed(0)
    inputs = [torch.randn(sum(lengths), heads, head_dim, requires_grad=True) for _ in range(3)]
    actual = attended(inputs, ends_of(lengths), window, scale=scale)
    expected = one_at_a_time(inputs, lengths, window, scale)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_half_precision_is_as_exact_as_it_can_be():
    torch.manual_seed(0)
    inputs = [torch.randn(250, 2, 32, dtype=torch.float16, requires_grad=True) for _ in range(3)]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    actual = attended(inputs, ends_of([250]), 65)
    expected = one_at_a_time(exact, [250], 65)
    torch.testing.assert_close(actual.float(), expected, rtol=2e-3, atol=2e-3)
    direction = torch.randn_like(actual)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, exact, direction.float()),
        strict=True,
    ):
        assert one.dtype == torch.float16
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=4e-3)


def strided(layout):
    """Queries, keys and values as views of one tensor, and it."""
    if layout == "wide rows":
        whole = torch.randn(230, 3, 2, 32, requires_grad=True)
        return whole, whole.unbind(1)
    whole = torch.randn(2, 3, 230, 32, requires_grad=True)  # heads do not lie side by side
    return whole, [part.transpose(0, 1) for part in whole.unbind(1)]


@pytest.mark.parametrize("layout", ["wide rows", "heads first"])
def test_views_give_what_copies_give(layout):
    torch.manual_seed(0)
    whole, views = strided(layout)
    ends, direction = ends_of([30, 200]), torch.randn(2, 230, 32).transpose(0, 1)
    actual = attended(views, ends, 65)
    expected = one_at_a_time(views, [30, 200], 65)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(actual, whole, direction)
    (wanted,) = torch.autograd.grad(expected, whole, direction)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_sequences_without_tokens_change_nothing():
    torch.manual_seed(0)
    inputs = [torch.randn(140, 2, 16) for _ in range(3)]
    plain = attended(inputs, torch.tensor([0, 64, 140], dtype=torch.int32), 65)
    filled = attended(inputs, torch.tensor([0, 0, 64, 64, 140, 140, 140], dtype=torch.int32), 65)
    assert torch.equal(plain, filled)


def test_shapes_are_known_without_values():
    inputs = [
        torch.empty(300, 4, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)
    ]
    actual = attended(inputs, torch.empty(4, dtype=torch.int32, device="meta"), 65)
    gradients = torch.autograd.grad(actual.sum(), inputs)
    assert {tensor.shape for tensor in (actual, *gradients)} == {(300, 4, 64)}
    assert {tensor.dtype for tensor in (actual, *gradients)} == {torch.bfloat16}
