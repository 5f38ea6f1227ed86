"""Multi-head attention against torch.nn.MultiheadAttention, and against one sequence at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headway import multi_head_attention
from headway.engine.model.layout import layout_of_lengths

HEADS, WIDTH = 4, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def reference() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)


def with_weights_of(reference: nn.MultiheadAttention, inputs: Tensor, **options) -> Tensor:
    """The same layer, with Headway's attention between the reference's own projections."""
    query, key, value = nn.functional.linear(inputs, reference.in_proj_weight, reference.in_proj_bias).chunk(
        3, -1
    )
    return reference.out_proj(multi_head_attention(query, key, value, HEADS, **options))


def forward_and_gradients(reference, output: Tensor, inputs: Tensor) -> list[Tensor]:
    weights = [inputs, reference.in_proj_weight, reference.in_proj_bias, reference.out_proj.weight]
    return [output.detach(), *torch.autograd.grad((output * random(*output.shape, seed=9)).sum(), weights)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["plain", "key padding", "causal", "boolean mask", "additive mask"])
def test_equals_torch_with_the_same_weights_forward_and_backward(case, reference):
    inputs = random(3, 7, WIDTH).requires_grad_()
    keys = torch.tensor([7, 4, 1])[:, None] > torch.arange(7)
    allowed = random(7, 7, seed=3) > -0.5
    allowed |= torch.eye(7, dtype=torch.bool)
    bias = random(7, 7, seed=4)
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain": ({}, {}),
        "key padding": ({"attention_mask": keys}, {"key_padding_mask": ~keys}),
        "causal": ({"is_causal": True}, {"attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)}),
        "boolean mask": ({"attention_mask": allowed[None]}, {"attn_mask": ~allowed}),
        "additive mask": ({"attention_mask": bias[None]}, {"attn_mask": bias}),
    }
    ours, theirs = cases[case]
    output = with_weights_of(reference, inputs, **ours)
    expected = reference(inputs, inputs, inputs, need_weights=False, **theirs)[0]
    assert_same(
        forward_and_gradients(reference, output, inputs),
        forward_and_gradients(reference, expected, inputs),
    )


def test_keys_of_another_length_and_values_of_another_width():
    query, key, value = random(2, 5, WIDTH), random(2, 9, WIDTH, seed=1), random(2, 9, 8, seed=2)
    expected = []
    for head in range(HEADS):
        scores = query[..., head * 6 : head * 6 + 6] @ key[..., head * 6 : head * 6 + 6].transpose(1, 2)
        expected.append((scores / math.sqrt(6)).softmax(-1) @ value[..., head * 2 : head * 2 + 2])
    output = multi_head_attention(query, key, value, HEADS)
    assert output.shape == (2, 5, 8)
    torch.testing.assert_close(output, torch.cat(expected, -1), rtol=1e-10, atol=1e-12)


def test_one_sequence_needs_no_batch_dimension():
    query, key, value = random(5, WIDTH), random(6, WIDTH, seed=1), random(6, WIDTH, seed=2)
    batched = multi_head_attention(query[None], key[None], value[None], HEADS)[0]
    torch.testing.assert_close(multi_head_attention(query, key, value, HEADS), batched)


def test_scale_replaces_the_square_root():
    query, key, value = (random(1, 4, WIDTH, seed=i) for i in range(3))
    scaled = multi_head_attention(query, key, value, HEADS, scale=0.5)
    torch.testing.assert_close(
        scaled, multi_head_attention(query * 0.5 * math.sqrt(6), key, value, HEADS), rtol=1e-10, atol=1e-12
    )


# Beyond 256 tokens another kernel computes a block.
@pytest.mark.parametrize("lengths", [[5], [3, 9, 1, 4], [7] * 40, [2, 300, 17]], ids=str)
def test_unpadded_equals_each_sequence_alone_forward_and_backward(lengths):
    query, key, value = row = [random(sum(lengths), WIDTH, seed=i).requires_grad_() for i in range(3)]
    layout = layout_of_lengths(torch.tensor(lengths))
    output = multi_head_attention(query, key, value, HEADS, layout=layout)
    parts = zip(*(tensor.split(lengths) for tensor in row), strict=True)
    expected = torch.cat([multi_head_attention(q, k, v, HEADS) for q, k, v in parts])
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    upstream = random(*output.shape, seed=7)
    ours = torch.autograd.grad((output * upstream).sum(), row)
    theirs = torch.autograd.grad((expected * upstream).sum(), row)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_dropout_acts_only_in_training():
    query, key, value = (random(2, 30, WIDTH, seed=i) for i in range(3))
    plain = multi_head_attention(query, key, value, HEADS)
    torch.testing.assert_close(multi_head_attention(query, key, value, HEADS, 0.5, training=False), plain)
    assert not torch.allclose(multi_head_attention(query, key, value, HEADS, 0.5), plain)


@pytest.mark.parametrize("unpadded", [False, True])
def test_dropout_drops_weights_at_its_rate_and_keeps_the_mean(unpadded):
    # With equal scores every weight is 1/keys; with one-hot values each output is one weight.
    keys, drop = 64, 0.25
    query, key = torch.zeros(keys, WIDTH), torch.zeros(keys, WIDTH)
    value = torch.eye(keys)
    options = {"layout": layout_of_lengths(torch.tensor([keys]))} if unpadded else {}
    torch.manual_seed(0)
    weights = torch.stack(
        [multi_head_attention(query, key, value, 1, drop, **options) for _ in range(20)]  # type: ignore[arg-type]
    )
    kept = weights[weights != 0]
    assert abs((weights == 0).float().mean().item() - drop) < 0.01
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / keys / (1 - drop)))


def test_dropout_is_random_through_the_global_generator_only():
    query, key, value = (random(1, 8, WIDTH, seed=i) for i in range(3))
    torch.manual_seed(5)
    first = multi_head_attention(query, key, value, HEADS, 0.5)
    torch.manual_seed(5)
    assert torch.equal(multi_head_attention(query, key, value, HEADS, 0.5), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 5}, "do not split into 5 heads"),
        ({"num_heads": 0}, "do not split into 0 heads"),
        ({"dropout": 1.0}, r"dropout is 1.0, not in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"key": random(2, 4, WIDTH * 2)}, "do not fit together"),
        ({"value": random(2, 5, WIDTH)}, "do not fit together"),
        (
            {"layout": layout_of_lengths(torch.tensor([4, 4])), "is_causal": True},
            "give a layout, or attention_mask or is_causal",
        ),
        (
            {"layout": layout_of_lengths(torch.tensor([4, 4])), "attention_mask": torch.ones(2, 4)},
            "give a layout, or attention_mask or is_causal",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    inputs = random(2, 4, WIDTH)
    with pytest.raises(ValueError, match=message):
        multi_head_attention(
            **({"query": inputs, "key": inputs, "value": inputs, "num_heads": 4} | arguments)
        )
