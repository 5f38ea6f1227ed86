"""Muon against its formulas in float64, against pytorch_optimizer's, and shared out over processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import transformers
from gpu_stand_in import META, Operations, allow_fused_optimizers
from muon_worker import CONFIG, share_work, take_steps
from pytorch_optimizer import Muon as LibraryMuon
from tiny_training import tiny_objective
from torch import nn

from headway.engine.optimizers.build import build_optimizer
from headway.engine.optimizers.muon import newton_schulz, orthogonalised
from headway.engine.optimizers.parameter_groups import parameter_groups, split_hidden_matrices
from headway.engine.parallel.worker import Worker

ALONE = Worker(device=torch.device("cpu"))


def by_singular_values(matrix):
    """The polynomial of Jordan et al. 2024 on each singular value, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


def relative_error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def test_newton_schulz_is_its_polynomial_of_the_singular_values():
    matrices = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([by_singular_values(matrix) for matrix in matrices])
    exact = newton_schulz(matrices.double(), torch.float64)
    torch.testing.assert_close(exact, expected, rtol=1e-6, atol=1e-9)
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.005)):
        for size in (1.0, 1e-6, 1e6):
            assert relative_error(newton_schulz(matrices * size, dtype), expected) < tolerance


def test_matrices_of_any_shape_come_back_in_their_order_with_the_size_of_adamws_steps():
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 30), (30, 20), (25, 25), (20, 30), (30, 20), (20, 30)]
    matrices = [torch.randn(*shape, generator=generator) for shape in shapes]
    for matrix, actual in zip(matrices, orthogonalised(matrices, ALONE), strict=True):
        assert actual.dtype == torch.float32 and actual.is_contiguous()
        expected = 0.2 * max(matrix.shape) ** 0.5 * by_singular_values(matrix)
        assert relative_error(actual, expected) < 0.03
        assert float(actual.square().mean().sqrt()) == pytest.approx(0.2, rel=0.15)


def test_first_steps_are_the_librarys_to_the_rounding_of_bf16():
    ours, theirs = tiny_objective(), tiny_objective()
    groups = split_hidden_matrices(theirs, parameter_groups(theirs, CONFIG.weight_decay))
    for group in groups:
        group["lr"] = CONFIG.learning_rate
        of_kind: dict[str, Any] = {"use_adjusted_lr": True}
        group |= of_kind if group["use_muon"] else {"betas": CONFIG.betas, "eps": CONFIG.eps}
    start = {name: weight.clone() for name, weight in ours.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    pair = [build_optimizer(ours, CONFIG), LibraryMuon(groups)]
    for _ in range(3):
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            left.grad = torch.randn(left.shape, generator=generator)
            right.grad = left.grad.clone()
        for optimizer in pair:
            optimizer.step()
    expected = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        if weight.is_floating_point():
            is_hidden = "layer." in name and weight.dim() == 2
            moved, wanted = weight - start[name], expected[name] - start[name]
            assert relative_error(moved, wanted) < (0.03 if is_hidden else 1e-5), name


def test_found_inf_leaves_every_bit_as_it_is():
    objective = tiny_objective()
    optimizer: Any = build_optimizer(objective, CONFIG)
    for value, found_inf in ((1.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)):
        before = bits(optimizer)
        optimizer.found_inf = torch.tensor(found_inf)
        for weight in objective.parameters():
            weight.grad = torch.full_like(weight, value)
        optimizer.step()
        assert (bits(optimizer) == before) == bool(found_inf)


def bits(optimizer):
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    tensors = [*weights, *(value for weight in weights for value in optimizer.state[weight].values())]
    return [tensor.detach().view(torch.int32).tolist() for tensor in tensors]


def test_workers_share_the_matrices_and_all_have_the_weights_of_one(tmp_path: Path) -> None:
    """Of two of the shapes there are fewer matrices than workers."""
    world = 3
    mp.spawn(share_work, (world, str(tmp_path)), nprocs=world)
    expected, computed_alone = take_steps(None)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for weights, _ in parts:
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name]), name
    assert sum(computed for _, computed in parts) == computed_alone
    assert max(computed for _, computed in parts) < 0.5 * computed_alone


def test_a_step_of_bert_base_is_120_operations_and_reads_nothing_back(monkeypatch):
    allow_fused_optimizers(monkeypatch)
    with META:
        model: Any = transformers.BertForMaskedLM(transformers.BertConfig())
    optimizer: Any = build_optimizer(model, CONFIG)
    optimizer.found_inf = torch.zeros((), device=META)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    with Operations() as seen:
        optimizer.step()
    assert seen.counts.total() <= 120, seen.counts.most_common(20)


def test_a_model_without_hidden_matrices_is_trained_by_adamw():
    layer: Any = nn.Linear(3, 2)
    other: Any = nn.Linear(3, 2)
    other.load_state_dict(layer.state_dict())
    for weight in (*layer.parameters(), *other.parameters()):
        weight.grad = torch.ones_like(weight)
    build_optimizer(layer, CONFIG).step()
    build_optimizer(other, CONFIG.model_copy(update={"name": "adamw"})).step()
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)
