"""How an encoder's layers run over an unpadded row: transformers' own modules, called in Headway's order.

A layer keeps its weights, their names and its hooks. Only its `forward` is another if it is given a layout;
without one it does what transformers wrote. So states, low-rank additions, sharding and activation
checkpointing see the layers they know.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.engine.model.attention import attend_unpadded
from headway.engine.model.layout import SequenceLayout

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of rotary positions (Su et al. 2021), floating, shape (tokens, head_dim) each."""
PAIR_ENTRANCE = "begin_pair"
"""Attribute of a layer whose products are split over workers: called on what enters a pair of them."""
RunLayer = Callable[[Any, Tensor, SequenceLayout, Rotation | None], Tensor]


def use_unpadded_forward(layers: nn.ModuleList, model_type: str) -> None:
    """Let layers run on a row, (tokens, hidden_size), if they are called with `layout`; in place."""
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
        **settings: Any,
    ) -> Any:
        if layout is None:
            return kind.forward(self, hidden_states, *arguments, **settings)
        return run(self, hidden_states, layout, rotation)

    return type(kind.__name__, (kind,), {"forward": forward, "runs_unpadded": True})


def _bert_layer(layer: Any, hidden: Tensor, layout: SequenceLayout, _: Rotation | None) -> Tensor:
    """BERT, RoBERTa, ELECTRA: Devlin et al. 2018; norms follow the sums."""
    attention, attended_output, output = layer.attention.self, layer.attention.output, layer.output
    projected = _projected(_begin_pair(layer, hidden), attention.query, attention.key, attention.value)
    # (tokens, width) → (tokens, heads, head_dim)
    query, key, value = (part.unflatten(-1, (-1, attention.attention_head_size)) for part in projected)
    probability = attention.dropout.p if layer.training else 0.0
    attended = attend_unpadded(query, key, value, layout, probability)
    hidden = attended_output.LayerNorm(attended_output.dropout(attended_output.dense(attended)) + hidden)
    inner = layer.intermediate.dense(_begin_pair(layer, hidden))
    inner = output.dense(layer.intermediate.intermediate_act_fn(inner))
    return output.LayerNorm(output.dropout(inner) + hidden)


def _distilbert_layer(layer: Any, hidden: Tensor, layout: SequenceLayout, _: Rotation | None) -> Tensor:
    attention, ffn = layer.attention, layer.ffn
    projected = _projected(hidden, attention.q_lin, attention.k_lin, attention.v_lin)
    query, key, value = (part.unflatten(-1, (-1, attention.attention_head_size)) for part in projected)
    probability = attention.dropout.p if layer.training else 0.0
    attended = attention.out_lin(attend_unpadded(query, key, value, layout, probability))
    hidden = layer.sa_layer_norm(attended + hidden)
    inner = ffn.lin2(ffn.activation(ffn.lin1(hidden)))
    return layer.output_layer_norm(ffn.dropout(inner) + hidden)


def _modernbert_layer(
    layer: Any, hidden: Tensor, layout: SequenceLayout, rotation: Rotation | None
) -> Tensor:
    """ModernBERT: Warner et al. 2024; norms come first, positions are rotations, some layers see a window."""
    attention = layer.attn
    assert rotation is not None
    # (tokens, 3 * width) → 3 x (tokens, heads, head_dim)
    query, key, value = (
        attention.Wqkv(layer.attn_norm(hidden)).unflatten(-1, (3, -1, attention.head_dim)).unbind(1)
    )
    query, key = _rotated(query, rotation), _rotated(key, rotation)
    probability = attention.attention_dropout if layer.training else 0.0
    attended = attend_unpadded(query, key, value, layout, probability, window=attention.sliding_window)
    hidden = hidden + attention.out_drop(attention.Wo(attended))
    inner, gate = layer.mlp.Wi(layer.mlp_norm(hidden)).chunk(2, dim=-1)
    return hidden + layer.mlp.Wo(layer.mlp.drop(layer.mlp.act(inner) * gate))


_BY_MODEL_TYPE: dict[str, RunLayer] = {"distilbert": _distilbert_layer, "modernbert": _modernbert_layer}


def _projected(hidden: Tensor, *parts: Any) -> list[Tensor]:
    """Queries, keys and values, (tokens, width) each; in one product on a GPU, if the layers are plain."""
    if hidden.device.type == "cpu" or any(type(part) is not nn.Linear for part in parts):
        return [part(hidden) for part in parts]
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    return list(F.linear(hidden, weight, bias).chunk(len(parts), dim=-1))


def _rotated(heads: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys, (tokens, heads, head_dim), turned by their positions, in float32."""
    cosines, sines = (part[:, None].float() for part in rotation)
    exact = heads.float()
    first, second = exact.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (exact * cosines + turned * sines).to(heads.dtype)


def _begin_pair(layer: Any, hidden: Tensor) -> Tensor:
    begin = getattr(layer, PAIR_ENTRANCE, None)
    return hidden if begin is None else begin(hidden)
