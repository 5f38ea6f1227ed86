"""Run an encoder's layers over an unpadded row: transformers' modules, called in Headway's order.

A layer keeps its weights, their names and its hooks. Only its `forward` differs, and only if it is given a
layout; without one it does what transformers wrote. So checkpoints, LoRA, sharding and activation
checkpointing see the layers that they know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from headway.engine.model.attention import attend_projected
from headway.engine.model.dropout import seeded_dropout
from headway.engine.model.gelu import gelu
from headway.engine.model.layout import SequenceLayout

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions (Su et al. 2021), floating, shape (tokens, head_dim) each. The sines
of the first half are negated, since the second half of a head is subtracted there."""
PAIR_ENTRANCE = "begin_pair"
"""Attribute of a layer whose products are split over workers; called on the input of a pair of products."""
RunLayer = Callable[[Any, Tensor, "LayerInputs"], Tensor]


class LayerInputs(NamedTuple):
    """What a layer needs besides hidden states.

    Attributes:
        layout: the sequences' boundaries.
        rotation: rotary positions, for encoders that have them.
        seed: integer scalar from which dropout is drawn; None to draw it from PyTorch's generator.
    """

    layout: SequenceLayout
    rotation: Rotation | None = None
    seed: Tensor | None = None


def use_unpadded_forward(layers: nn.ModuleList, model_type: str) -> None:
    """Change layers, in place, to run on a row, (tokens, hidden_size), if they are called with `layout`."""
    run = _BY_MODEL_TYPE.get(model_type, _bert_layer)
    for layer in layers:
        kind: Any = type(layer)
        if not hasattr(kind, "runs_unpadded"):
            layer.__class__ = _with_unpadded_forward(kind, run)


@cache
def _with_unpadded_forward(kind: Any, run: RunLayer) -> type[nn.Module]:
    def forward(
        self: Any,
        hidden_states: Tensor,
        *arguments: Any,
        layout: SequenceLayout | None = None,
        rotation: Rotation | None = None,
        seed: Tensor | None = None,
        **settings: Any,
    ) -> Any:
        if layout is None:
            return kind.forward(self, hidden_states, *arguments, **settings)
        return run(self, hidden_states, LayerInputs(layout, rotation, seed))

    return type(kind.__name__, (kind,), {"forward": forward, "runs_unpadded": True})


def _bert_layer(layer: Any, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """A layer of BERT, RoBERTa or ELECTRA (Devlin et al. 2018), with norms after the sums."""
    attention, attended_output, output = layer.attention.self, layer.attention.output, layer.output
    entering = _begin_pair(layer, hidden)
    projected = _projected(entering, attention.query, attention.key, attention.value)
    probability = attention.dropout.p if layer.training else 0.0
    attended = attend_projected(projected, attention.attention_head_size, inputs.layout, probability)
    attended = _dropped(attended_output.dropout, attended_output.dense(attended), inputs.seed, 1)
    hidden = attended_output.LayerNorm(attended + hidden)
    inner = layer.intermediate.dense(_begin_pair(layer, hidden))
    inner = _activated(layer.intermediate.intermediate_act_fn, inner)
    inner = _dropped(output.dropout, output.dense(inner), inputs.seed, 2)
    return output.LayerNorm(inner + hidden)


def _distilbert_layer(layer: Any, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    attention, ffn = layer.attention, layer.ffn
    projected = _projected(hidden, attention.q_lin, attention.k_lin, attention.v_lin)
    probability = attention.dropout.p if layer.training else 0.0
    attended = attend_projected(projected, attention.attention_head_size, inputs.layout, probability)
    hidden = layer.sa_layer_norm(attention.out_lin(attended) + hidden)
    inner = ffn.lin2(_activated(ffn.activation, ffn.lin1(hidden)))
    return layer.output_layer_norm(_dropped(ffn.dropout, inner, inputs.seed, 1) + hidden)


def _modernbert_layer(layer: Any, hidden: Tensor, inputs: LayerInputs) -> Tensor:
    """A layer of ModernBERT (Warner et al. 2024): norms first, positions as rotations, a window in some."""
    attention, rotation = layer.attn, inputs.rotation
    assert rotation is not None
    query, key, value = _in_parts(attention.Wqkv, layer.attn_norm(hidden), 3)
    # (tokens, width) → (tokens, num_heads, head_dim) and back
    query, key = (
        rotated(part.unflatten(-1, (-1, attention.head_dim)), rotation).flatten(1) for part in (query, key)
    )
    projected = (query, key, value)
    probability = attention.attention_dropout if layer.training else 0.0
    attended = attend_projected(
        projected, attention.head_dim, inputs.layout, probability, window=attention.sliding_window
    )
    hidden = hidden + attention.out_drop(attention.Wo(attended))
    inner, gate = _in_parts(layer.mlp.Wi, layer.mlp_norm(hidden), 2)
    inner = _dropped(layer.mlp.drop, _activated(layer.mlp.act, inner) * gate, inputs.seed, 1)
    return hidden + layer.mlp.Wo(inner)


_BY_MODEL_TYPE: dict[str, RunLayer] = {"distilbert": _distilbert_layer, "modernbert": _modernbert_layer}


def rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys, (tokens, num_heads, head_dim), rotated by their positions, in float32."""
    # (tokens, head_dim) → (tokens, 1, 2, head_dim / 2)
    cosines, sines = (part[:, None].unflatten(-1, (2, -1)).float() for part in rotation)
    # (tokens, num_heads, head_dim) → (tokens, num_heads, 2, head_dim / 2)
    exact = heads.unflatten(-1, (2, -1)).float()
    # `flip` swaps the halves; a compiler makes it an index, not a copy.
    return (exact * cosines + exact.flip(-2) * sines).to(heads.dtype).flatten(-2)


def _projected(hidden: Tensor, *parts: Any) -> Tensor | tuple[Tensor, ...]:
    """Queries, keys and values; on a GPU as one tensor by one product, if the three layers are plain."""
    if hidden.device.type == "cpu" or any(type(part) is not nn.Linear for part in parts):
        return tuple(part(hidden) for part in parts)
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    return F.linear(hidden, weight, bias)


def _in_parts(product: Any, hidden: Tensor, count: int) -> tuple[Tensor, ...]:
    """The outputs of a product in equal parts; on a GPU by one product for each, if the layer is plain.

    Otherwise, backward would have to concatenate the parts' gradients.
    """
    if hidden.device.type == "cpu" or type(product) is not nn.Linear:
        return product(hidden).chunk(count, dim=-1)
    weights = product.weight.chunk(count)
    biases = [None] * count if product.bias is None else product.bias.chunk(count)
    return tuple(F.linear(hidden, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def _activated(activation: Any, values: Tensor) -> Tensor:
    if (
        isinstance(activation, GELUActivation)
        and values.device.type != "cpu"
        and torch.compiler.is_compiling()
    ):
        return gelu(values)
    return activation(values)


def _dropped(dropout: Any, values: Tensor, seed: Tensor | None, site: int) -> Tensor:
    """A module's dropout, drawn from a seed if there is one; `site` distinguishes a layer's modules."""
    if seed is None or not dropout.training or dropout.p == 0.0:
        return dropout(values)
    return seeded_dropout(values, dropout.p, seed, site)


def _begin_pair(layer: Any, hidden: Tensor) -> Tensor:
    begin = getattr(layer, PAIR_ENTRANCE, None)
    return hidden if begin is None else begin(hidden)
