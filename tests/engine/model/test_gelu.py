"""GELU by a polynomial, beside PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from headway.engine.model.gelu import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.bfloat16, 4e-3)])
def test_values_and_derivatives_are_those_of_the_normal_distribution(dtype, tolerance):
    values = torch.linspace(-12, 12, 20_001).to(dtype).requires_grad_()
    exact = values.detach().double().requires_grad_()
    expected = F.gelu(exact)
    actual = gelu(values)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=5e-7)
    (slope,) = torch.autograd.grad(actual.float().sum(), values)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(slope.double(), wanted, rtol=tolerance, atol=2e-6)
