"""Choose which parts of a pretrained encoder are kept and trained: all, some layers, or LoRA."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.config.finetune import LoraConfig
from headway.engine.model.unpadded import encoder_layers


def keep_layers(model: PreTrainedModel, count: int | None) -> None:
    """Drop all but the `count` lowest layers, in place (Sajjad et al. 2020); None keeps all.

    Raises:
        ConfigError: the encoder has fewer layers.
    """
    if count is None:
        return
    layers = encoder_layers(model)
    if count > len(layers):
        raise ConfigError(f"layers: {count} is not allowed; the encoder has {len(layers)} layers")
    del layers[count:]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]


def freeze_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze the embeddings and the `count` lowest layers; 0 freezes nothing.

    Raises:
        ConfigError: the encoder has fewer layers.
    """
    if count == 0:
        return
    layers = encoder_layers(model)
    if count > len(layers):
        raise ConfigError(f"frozen_layers: {count} is not allowed; the encoder has {len(layers)} layers")
    for part in [model.base_model.embeddings, *layers[:count]]:
        part.requires_grad_(False)


def add_lora(model: PreTrainedModel, config: LoraConfig) -> None:
    """Change a model, in place, so that only its head and low-rank additions to linear layers are trained.

    Layers that are frozen already get none.

    Raises:
        ConfigError: peft is not installed, all layers are frozen, or no linear layer has any of the names.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora: needs an extra; install it with: pip install 'headway[lora]'") from error
    head = [parameter for parameter in _head(model) if parameter.requires_grad]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(model, config.modules),
    )
    # These are drawn from torch's generator, which the caller has seeded, so every worker draws the same.
    peft.inject_adapter_in_model(settings, model)
    for parameter in head:
        parameter.requires_grad_(True)


def _targets(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Full names of the encoder's linear layers whose last part is in `names`; of all if `names` is empty.

    Layers that are frozen are left out.
    """
    layers = encoder_layers(model)
    inside = {id(part) for part in layers.modules() if isinstance(part, nn.Linear)}
    linear = [
        name for name, part in model.named_modules() if id(part) in inside and part.weight.requires_grad
    ]
    if not linear:
        raise ConfigError(f"frozen_layers: {len(layers)} leaves lora no layer to adapt")
    chosen = [name for name in linear if not names or name.rpartition(".")[2] in names]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ConfigError(f"lora.modules: {names!r} names no linear layer; allowed: {known}")
    return chosen


def _head(model: PreTrainedModel) -> list[nn.Parameter]:
    """Weights outside the encoder, and those of BERT's pooler, which only heads use."""
    base = {id(parameter) for parameter in model.base_model.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in base]
    pooler = getattr(model.base_model, "pooler", None)
    return head + (list(pooler.parameters()) if pooler is not None else [])


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its low-rank additions merged, readable without peft; itself if it has none."""
    if not any(hasattr(part, "lora_A") for part in model.modules()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    result = copy.deepcopy(model)
    for name, part in list(result.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge(safe_merge=True)
            result.set_submodule(name, part.get_base_layer())
    return result


@contextmanager
def without_additions(module: nn.Module) -> Iterator[None]:
    """While the block runs, a module has no low-rank additions: as large and as fast as once they are merged.

    Its answers are those of the weights that it had before training.
    """
    added = {name: part for name, part in module.named_modules() if hasattr(part, "lora_A") and name}
    for name, part in added.items():
        module.set_submodule(name, part.get_base_layer())
    try:
        yield
    finally:
        for name, part in added.items():
            module.set_submodule(name, part)
