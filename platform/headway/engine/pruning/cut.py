"""Cut an encoder down to some of its heads, neurons and columns: smaller weights, without masks.

The result is a model of the same transformers class with a smaller configuration. All of the supported kinds
of encoder ask for hidden_size = heads x head size, and for the same numbers in every layer. So hidden states
keep as many columns as the heads that stay have together, and each layer keeps its own best heads, but
equally many.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.engine.model.encoder import made_ours
from headway.engine.pruning.axes import HIDDEN, POOLED, Axis, axes_of, check_prunable


class Sizes(NamedTuple):
    """How large an encoder is.

    Attributes:
        layers: of the encoder.
        heads: of each layer.
        hidden: columns of hidden states.
        neurons: of each layer's feed-forward part.
    """

    layers: int
    heads: int
    hidden: int
    neurons: int

    @property
    def head_size(self) -> int:
        """Columns of a head."""
        return self.hidden // self.heads

    def shrunk(self, heads: int | None, neurons: int | None) -> Sizes:
        """The sizes with fewer heads, and with them fewer columns, and with fewer neurons.

        Raises:
            ConfigError: there are fewer heads or neurons than that.
        """
        for name, wanted, found in (("heads", heads, self.heads), ("neurons", neurons, self.neurons)):
            if wanted is not None and wanted > found:
                raise ConfigError(f"{name}: {wanted} is not allowed; each layer has {found} {name}")
        heads = heads or self.heads
        return self._replace(heads=heads, hidden=heads * self.head_size, neurons=neurons or self.neurons)

    def groups(self) -> dict[str, int]:
        """How many units each group of an encoder of these sizes has."""
        counts = {HIDDEN: self.hidden, POOLED: self.hidden}
        for layer in range(self.layers):
            counts |= {f"heads.{layer}": self.heads, f"neurons.{layer}": self.neurons}
        return counts


def sizes_of(model: PreTrainedModel) -> Sizes:
    """How large a model's encoder is.

    Raises:
        ConfigError: encoders of this kind cannot be pruned.
    """
    config = model.config
    check_prunable(config)
    return Sizes(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_size,
        getattr(config, _neurons_name(model)),
    )


def pruned(model: PreTrainedModel, kept: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model with only some units of each group.

    Args:
        model: of a supported kind, with any head; it is not changed.
        kept: for each group of which not all units stay, the indices of those that do, int64, increasing.
            Groups of one kind keep equally many.

    Raises:
        ConfigError: encoders of this kind, or some weight of this one, cannot be pruned.
    """
    sizes = sizes_of(model)
    rows = {
        group: _columns(indices, sizes.head_size if group.startswith("heads") else 1)
        for group, indices in kept.items()
    }
    counts = sizes.groups() | {group: len(indices) for group, indices in kept.items()}
    config = copy.deepcopy(model.config)
    config.num_attention_heads = counts["heads.0"]
    config.hidden_size = counts[HIDDEN]
    setattr(config, _neurons_name(model), counts["neurons.0"])
    if counts[HIDDEN] != counts["heads.0"] * sizes.head_size:
        raise ValueError(f"{counts[HIDDEN]} columns are not those of {counts['heads.0']} heads")
    # Heads that share weights with the embeddings share them from the start.
    smaller = type(model)(config).to(model.dtype)
    axes = axes_of(model)
    weights = {name: _cut(weight, axes[name], rows) for name, weight in model.state_dict().items()}
    smaller.load_state_dict(weights)
    return made_ours(smaller).eval()


def _cut(weight: Tensor, axes: tuple[Axis, ...], rows: Mapping[str, Tensor]) -> Tensor:
    for dimension, axis in enumerate(axes):
        if axis.group is not None and axis.group in rows:
            length = weight.size(dimension) // axis.copies
            indices = torch.cat([rows[axis.group] + number * length for number in range(axis.copies)])
            weight = weight.index_select(dimension, indices.to(weight.device))
    return weight


def _columns(units: Tensor, width: int) -> Tensor:
    """The columns of some units that have `width` columns each."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _neurons_name(model: PreTrainedModel) -> str:
    return "hidden_dim" if model.config.model_type == "distilbert" else "intermediate_size"
