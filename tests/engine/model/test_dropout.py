"""Dropout that draws bits by the word: its rate, its scale, its gradient, its seed."""

import pytest
import torch
from torch import nn

from headway.engine.model.dropout import Dropout, dropout, seeded_dropout, use_fast_dropout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_drops_its_share_and_scales_the_rest(dtype, probability):
    torch.manual_seed(0)
    values = torch.ones(400, 501, dtype=dtype)
    result = dropout(values, probability)
    zeros = float((result == 0).double().mean())
    assert zeros == pytest.approx(probability, abs=4 * (probability / values.numel()) ** 0.5)
    kept = result[result != 0].double()
    assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - probability), rel=5e-3)


def test_gradient_goes_through_what_was_kept_alone():
    torch.manual_seed(1)
    values = torch.randn(50, 30, dtype=torch.float64, requires_grad=True)
    result = dropout(values, 0.3)
    upstream = torch.randn_like(result)
    (gradient,) = torch.autograd.grad(result, values, upstream)
    factor = (result / values).detach()
    torch.testing.assert_close(gradient, upstream * factor)


def test_depends_on_torchs_seed_alone():
    values = torch.ones(1000)
    torch.manual_seed(5)
    first, second = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(values, 0.5), first)
    assert not torch.equal(first, second)


def test_does_nothing_outside_training():
    values = torch.randn(10)
    assert dropout(values, 0.5, training=False) is values
    assert Dropout(0.5).eval()(values) is values


def test_takes_the_place_of_every_dropout_of_a_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.3)))
    use_fast_dropout(model)
    assert [part.p for part in model.modules() if type(part) is Dropout] == [0.2, 0.3]


def seeded(values, seed=12345, probability=0.1, site=1):
    return seeded_dropout(values, probability, torch.tensor(seed), site)


def test_seeded_dropout_drops_the_share_asked_for_everywhere():
    kept = (seeded(torch.ones(4000, 256)) != 0).float()
    assert kept.mean().item() == pytest.approx(0.9, abs=0.001)
    # By rows and by columns, the spread is that of independent draws.
    assert kept.mean(0).std().item() == pytest.approx((0.09 / 4000) ** 0.5, rel=0.15)
    assert kept.mean(1).std().item() == pytest.approx((0.09 / 256) ** 0.5, rel=0.15)


def test_seeded_dropout_keeps_the_mean_and_drops_the_same_backward():
    values = torch.full((1000, 100), 3.0, requires_grad=True)
    actual = seeded(values)
    assert actual.mean().item() == pytest.approx(3.0, abs=0.02)
    (gradient,) = torch.autograd.grad(actual.sum(), values)
    assert torch.equal(gradient != 0, actual != 0)
    assert torch.equal(actual, seeded(values))


@pytest.mark.parametrize("other", [{"seed": 12346}, {"site": 2}, {"seed": 12345 + 2**20}])
def test_other_seeds_and_sites_drop_independently(other):
    one = seeded(torch.ones(1000, 300)) == 0
    two = seeded(torch.ones(1000, 300), **other) == 0
    assert (one & two).float().mean().item() == pytest.approx(0.01, abs=0.001)
    neighbours = (one[:, :-1] & one[:, 1:]).float().mean().item()
    assert neighbours == pytest.approx(0.01, abs=0.001)
