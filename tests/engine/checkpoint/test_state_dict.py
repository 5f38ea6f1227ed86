"""Of a state that several workers have whole, each writes a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headway.engine.checkpoint.state_dict import part_of_copies


def state() -> dict[str, Any]:
    tensors = {f"weight{size}": torch.ones(size) for size in (4, 3, 2, 1)}
    state = {name: {"step": torch.tensor(3.0), "average": torch.ones_like(t)} for name, t in tensors.items()}
    groups = [{"lr": 0.1, "params": list(tensors)}]
    return {"model": tensors, "optimizer": {"state": state, "param_groups": groups}}


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {path: value}
    if not isinstance(value, dict):
        return {}
    return {k: v for name, item in value.items() for k, v in tensors_of(item, f"{path}.{name}").items()}


def test_the_parts_together_are_the_state_and_each_is_its_share() -> None:
    whole = tensors_of(state())
    parts = [tensors_of(part_of_copies(state(), rank, 3)) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
    assert max(sizes) - min(sizes) <= 4 * 4, "they differ by less than the largest tensor"


def test_what_is_no_tensor_is_in_every_part_and_nothing_is_left_empty() -> None:
    for rank in range(8):
        part = part_of_copies(state(), rank, 8)
        assert part["optimizer"]["param_groups"] == state()["optimizer"]["param_groups"]
        assert all(part["optimizer"].get("state", {"": 1}).values())


def test_one_worker_writes_all() -> None:
    assert tensors_of(part_of_copies(state(), 0, 1)).keys() == tensors_of(state()).keys()
