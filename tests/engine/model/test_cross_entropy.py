"""Cross-entropy in chunks against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from headway.engine.model import cross_entropy
from headway.engine.model.cross_entropy import cross_entropy_sum


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_loss_and_gradient_are_pytorchs(rows, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS", 100)  # several chunks
    torch.manual_seed(0)
    logits = torch.randn(rows, 33, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(33, (rows,))
    expected = F.cross_entropy(logits, labels, reduction="sum")
    actual = cross_entropy_sum(logits, labels)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(*(torch.autograd.grad(3 * x, logits) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_scores_are_normalised_in_float32():
    torch.manual_seed(0)
    logits = (5 * torch.randn(20, 5000)).bfloat16()
    labels = torch.randint(5000, (20,))
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, labels), expected, rtol=1e-5, atol=1e-3)


def test_all_rows_at_once_as_on_a_gpu_give_the_same_loss_and_gradient():
    torch.manual_seed(0)
    logits = torch.randn(17, 33, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(33, (17,))
    expected = F.cross_entropy(logits, labels, reduction="sum")
    actual = cross_entropy._CrossEntropySumAtOnce.apply(logits, labels)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(*(torch.autograd.grad(3 * x, logits) for x in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other)
