"""Chooses which layers, heads, neurons and columns of an encoder stay, and drops the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from headway.compress.importance import least_harmful_layers, unit_importance, unit_magnitude
from headway.config.compression.prune import PruneConfig
from headway.data.batch import Batch
from headway.engine.model.lora import keep_layers
from headway.engine.pruning.cut import Sizes, pruned, sizes_of
from headway.engine.training.objectives import TaskObjective


def prune(
    model: PreTrainedModel,
    config: PruneConfig,
    objective: TaskObjective | None = None,
    batches: Sequence[Batch] = (),
) -> PreTrainedModel:
    """A smaller model, as the settings say.

    Args:
        model: a transformers model; its layers that do not stay are dropped from it.
        config: what stays, and by which measure.
        objective: around the model, if importance is measured.
        batches: of rows to measure it on.

    Raises:
        ConfigError: the model has fewer layers, heads or neurons than should stay, or cannot be pruned.
    """
    if not config.measures_importance:
        objective = None
    wanted = sizes_of(model).shrunk(config.heads, config.neurons)
    layers = config.layers
    if isinstance(layers, int) and objective is not None and layers < wanted.layers:
        layers = tuple(least_harmful_layers(objective, batches, layers))
    keep_layers(model, layers)
    sizes = sizes_of(model)
    wanted = wanted._replace(layers=sizes.layers)
    if wanted == sizes:
        return model
    scores = unit_magnitude(model) if objective is None else unit_importance(objective, batches)
    return pruned(model, best_units(scores, sizes, wanted))


def best_units(scores: Mapping[str, Tensor], sizes: Sizes, wanted: Sizes) -> dict[str, Tensor]:
    """The indices, increasing, of the units with the highest scores in each group that shrinks."""
    counts, targets = sizes.groups(), wanted.groups()
    return {
        group: scores[group].topk(target).indices.sort().values
        for group, target in targets.items()
        if target < counts[group]
    }
