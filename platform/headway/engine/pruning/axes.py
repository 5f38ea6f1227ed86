"""Which dimensions of which weights belong to an attention head, a neuron, or a column of the hidden states.

A unit is what structured pruning keeps or drops as a whole; units of one kind form a group. In a layer of
BERT with 2 heads of 4 columns and 16 neurons, these weights have axes of the groups in brackets:

    encoder.layer.0.attention.self.query.weight    [heads.0, hidden]      (2 x 4, 8)
    encoder.layer.0.attention.output.dense.weight  [hidden, heads.0]      (8, 2 x 4)
    encoder.layer.0.intermediate.dense.weight      [neurons.0, hidden]    (16, 8)
    encoder.layer.0.output.LayerNorm.weight        [hidden]               (8,)

Dropping head 1 of layer 0 drops the last 4 rows of the first weight, and the last 4 columns of the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel

from headway.config.base import ConfigError

HIDDEN = "hidden"
POOLED = "pooled"


class Axis(NamedTuple):
    """A dimension of a weight.

    Attributes:
        group: `hidden`, `pooled`, `heads.N` or `neurons.N` of layer N; None if no unit has a part of it.
        copies: how many times all units follow one another, as queries, keys and values do in one weight.
    """

    group: str | None
    copies: int = 1


_HIDDEN, _POOLED, _HEADS, _NEURONS = Axis(HIDDEN), Axis(POOLED), Axis("heads"), Axis("neurons")
_ALL = Axis(None)
_Rules = list[tuple[str, tuple[Axis, ...]]]

_BERT: _Rules = [
    (r"embeddings\.\w+_embeddings", (_ALL, _HIDDEN)),
    (r"(.*\.)?LayerNorm", (_HIDDEN,)),
    (r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)", (_HEADS, _HIDDEN)),
    (r"encoder\.layer\.\d+\.attention\.output\.dense", (_HIDDEN, _HEADS)),
    (r"encoder\.layer\.\d+\.intermediate\.dense", (_NEURONS, _HIDDEN)),
    (r"encoder\.layer\.\d+\.output\.dense", (_HIDDEN, _NEURONS)),
    (r"pooler\.dense", (_POOLED, _HIDDEN)),
    (r"cls\.predictions\.transform\.dense", (_HIDDEN, _HIDDEN)),
    (r"cls\.predictions\.decoder", (_ALL, _HIDDEN)),
    (r"cls\.predictions", (_ALL,)),
    (r"cls\.seq_relationship", (_ALL, _POOLED)),
    (r"qa_outputs", (_ALL, _HIDDEN)),
]
_DISTILBERT: _Rules = [
    (r"embeddings\.\w+_embeddings", (_ALL, _HIDDEN)),
    (r"embeddings\.LayerNorm|transformer\.layer\.\d+\.(sa|output)_layer_norm|vocab_layer_norm", (_HIDDEN,)),
    (r"transformer\.layer\.\d+\.attention\.[qkv]_lin", (_HEADS, _HIDDEN)),
    (r"transformer\.layer\.\d+\.attention\.out_lin", (_HIDDEN, _HEADS)),
    (r"transformer\.layer\.\d+\.ffn\.lin1", (_NEURONS, _HIDDEN)),
    (r"transformer\.layer\.\d+\.ffn\.lin2", (_HIDDEN, _NEURONS)),
    (r"vocab_transform", (_HIDDEN, _HIDDEN)),
    (r"vocab_projector|qa_outputs", (_ALL, _HIDDEN)),
    (r"pre_classifier", (_POOLED, _HIDDEN)),
]
_MODERNBERT: _Rules = [
    (r"embeddings\.tok_embeddings|decoder", (_ALL, _HIDDEN)),
    (r"embeddings\.norm|layers\.\d+\.(attn|mlp)_norm|final_norm", (_HIDDEN,)),
    (r"layers\.\d+\.attn\.Wqkv", (Axis("heads", 3), _HIDDEN)),
    (r"layers\.\d+\.attn\.Wo", (_HIDDEN, _HEADS)),
    (r"layers\.\d+\.mlp\.Wi", (Axis("neurons", 2), _HIDDEN)),
    (r"layers\.\d+\.mlp\.Wo", (_HIDDEN, _NEURONS)),
]
_RULES = {"bert": _BERT, "distilbert": _DISTILBERT, "modernbert": _MODERNBERT}


def check_prunable(config: PreTrainedConfig) -> None:
    """Refuse an encoder whose weights are not known here.

    Raises:
        ConfigError: the message names the kind of model, and those that can be pruned.
    """
    if config.model_type not in _RULES:
        raise ConfigError(
            f"model: {config.model_type!r} encoders cannot be pruned; allowed: {', '.join(_RULES)}"
        )


def axes_of(model: PreTrainedModel) -> dict[str, tuple[Axis, ...]]:
    """The axes of each weight by its name in the model's state dict.

    Raises:
        ConfigError: encoders of this kind, or some weight of this one, are not known.
    """
    check_prunable(model.config)
    names = list(model.state_dict())
    rules = [*_RULES[model.config.model_type], *_head_rules(names)]
    return {name: _axes(name.removeprefix(f"{model.base_model_prefix}."), rules) for name in names}


def _head_rules(names: list[str]) -> Iterator[tuple[str, tuple[Axis, ...]]]:
    """What ModernBERT's head puts out, and what a classifier takes in; both depend on other layers."""
    # Scores of words are products with their embeddings, which have the columns of hidden states.
    head = _HIDDEN if "decoder.weight" in names else _POOLED
    yield r"head\.dense", (head, _HIDDEN)
    yield r"head\.norm", (head,)
    is_pooled = any(re.search(r"(pooler\.dense|pre_classifier|head\.dense)\.weight$", name) for name in names)
    yield r"classifier", (_ALL, _POOLED if is_pooled else _HIDDEN)


def _axes(name: str, rules: _Rules) -> tuple[Axis, ...]:
    module, _, kind = name.rpartition(".")
    for pattern, axes in rules:
        if re.fullmatch(pattern, module):
            layer = re.search(r"\.(\d+)\.", name)
            # A bias has the first axis of its weight.
            wanted = axes[:1] if kind == "bias" else axes
            return tuple(_of_layer(axis, layer.group(1) if layer else "") for axis in wanted)
    raise ConfigError(f"model: it has a weight {name!r}, which is not known how to prune")


def _of_layer(axis: Axis, layer: str) -> Axis:
    return axis._replace(group=f"{axis.group}.{layer}") if axis in _IN_LAYERS else axis


_IN_LAYERS = (_HEADS, _NEURONS, Axis("heads", 3), Axis("neurons", 2))
