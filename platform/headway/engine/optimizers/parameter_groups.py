"""Group the weights that an optimizer treats alike: by decay, depth and kind, and whether they are new."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from headway.engine.model.encoder import NEW_WEIGHTS

_LAYER = re.compile(r"\blayers?\.(\d+)\.")
_EMBEDDING = "embedding"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A group of matrices with weight decay, and a group of vectors (biases and norms) without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]


def split_new_weights(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups split by `waits` into weights that a checkpoint lacked, and after them all that it had.

    No group waits if no weight is new, or all are. See `load_pretraining_model`.
    """
    new = {
        id(parameter)
        for part in model.modules()
        for name, parameter in part.named_parameters()
        if name in getattr(part, NEW_WEIGHTS, ())
    }
    split = []
    for waits in (False, True):
        for group in groups:
            chosen = [p for p in group["params"] if (id(p) not in new) == waits]
            if chosen:
                split.append(group | {"params": chosen, "waits": waits})
    if {group["waits"] for group in split} == {True, False}:
        return split
    return groups


def with_layerwise_lr_decay(
    model: nn.Module, groups: list[dict[str, Any]], learning_rate: float, layerwise_lr_decay: float
) -> list[dict[str, Any]]:
    """Groups split by depth: each layer's rate is `layerwise_lr_decay` times that of the layer above it.

    Howard and Ruder 2018, section 3.2. Heads have the full rate, and embeddings the lowest.
    """
    depths = _depths(model)
    split: dict[tuple[int, int], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            depth = depths[id(parameter)]
            rate = learning_rate * layerwise_lr_decay**depth
            split.setdefault((number, depth), group | {"params": [], "lr": rate})["params"].append(parameter)
    return list(split.values())


def _depths(model: nn.Module) -> dict[int, int]:
    """How far below the heads each parameter is, by its `id`: 0 for heads, 1 for the last layer, …"""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    numbers = {key: _LAYER.search(name) for key, name in names.items()}
    # Modules, not weights, tell the number of layers: a stage of a pipeline has the weights of some layers
    # only.
    matches = [_LAYER.search(f"{name}.") for name, _ in model.named_modules()]
    layers = 1 + max((int(match[1]) for match in matches if match), default=-1)
    depths = {}
    for key, name in names.items():
        match = numbers[key]
        if match:
            depths[key] = layers - int(match[1])
        else:
            depths[key] = layers + 1 if _EMBEDDING in name else 0
    return depths


def split_hidden_matrices(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups split by `use_muon` into matrices inside layers, and everything else."""
    hidden = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and _LAYER.search(name)
    }
    split = []
    for group in groups:
        for use_muon in (True, False):
            chosen = [p for p in group["params"] if (id(p) in hidden) == use_muon]
            if chosen:
                split.append(group | {"params": chosen, "use_muon": use_muon})
    return split
