"""Load an encoder for inference, with faster layers if it has BERT's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.activations import GELUActivation

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.engine.hardware.device import compute_dtype
from headway.engine.inference.int8 import FILE, PRODUCTS, Int8Layer, has_int8_products, read_roundings
from headway.engine.model.attention import attend_projected
from headway.engine.model.encoder import quietly
from headway.engine.model.layout import SequenceLayout
from headway.engine.model.unpadded import (
    check_supported,
    encoder_layers,
    run_trunk,
    run_unpadded,
    token_type_arguments,
)

_FUSABLE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Values of `model_type` whose layers are BERT's, with the same names."""


class Product:
    """`hidden @ weight.T + bias` and the operation after it, in one call if the CPU supports it.

    On a CPU, oneDNN keeps a second copy of a weight in the order in which it multiplies, and adds a tensor or
    applies GELU while results are in the cache. Measured on 2 cores with all layers of MiniLM and texts of 29
    tokens on average: in bf16, 64 texts take 73 ms instead of 96, and one text takes 4.0 ms instead of 5.4.
    In fp32, without AVX-512, 64 texts take the same time, and one text takes 11 ms instead of 18.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    @cached_property
    def _packed(self) -> Tensor | None:
        """The copy for oneDNN, made when it is first used, since layers in int8 never use it."""
        if self.weight.device.type != "cpu" or not _has_fused_products(self.weight.dtype):
            return None
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous())

    def __call__(self, hidden: Tensor) -> Tensor:
        """The product, shape (tokens, width)."""
        if self._packed is None:
            return F.linear(hidden, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self.bias, "none", [], "")

    def activated(self, hidden: Tensor, activation: Any) -> Tensor:
        """An activation of the product."""
        if self._packed is None or not isinstance(activation, GELUActivation):
            return activation(self(hidden))
        if self.weight.dtype == torch.float32:  # PyTorch's GELU is twice as fast as oneDNN's
            return torch.ops.aten.gelu_(self(hidden))
        return torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self.bias, "gelu", [], "none")

    def added(self, hidden: Tensor, other: Tensor) -> Tensor:
        """The product plus a tensor of its shape."""
        if self._packed is None:
            return self(hidden) + other
        return torch.ops.mkldnn._linear_pointwise.binary(hidden, other, self._packed, self.bias, "add")


def _has_fused_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fused products for this dtype; bf16 needs a CPU with AVX-512 or better."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class FusedLayer:
    """A layer of BERT with one product for queries, keys and values, and fused operations.

    Measured on 2 cores with MiniLM in bf16 and packs of texts of 29 tokens on average: 128 tokens take 11 ms
    instead of 18, and 2,048 tokens take 142 ms instead of 155.
    """

    def __init__(self, layer: Any) -> None:
        self.heads = int(layer.attention.self.num_attention_heads)
        self.projections = Product(*_fuse(layer.attention.self))
        self.attended, self.attended_norm = _parts(layer.attention.output)
        self.wide = Product(layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        self.activation = layer.intermediate.intermediate_act_fn
        self.narrow, self.norm = _parts(layer.output)

    def replaced(self, change: Callable[[Product], Any]) -> FusedLayer:
        """The same layer with each product replaced."""
        other = copy.copy(self)
        for name in PRODUCTS:
            setattr(other, name, change(getattr(self, name)))
        return other

    def __call__(self, hidden: Tensor, layout: SequenceLayout, **_: None) -> Tensor:
        """The layer's output, (tokens, hidden_size), from an input of the same shape."""
        attended = attend_projected(self.projections(hidden), hidden.size(-1) // self.heads, layout)
        hidden = self.attended_norm(self.attended.added(attended, hidden))
        return self.norm(self.narrow.added(self.wide.activated(hidden, self.activation), hidden))


def _parts(output: Any) -> tuple[Product, Any]:
    return Product(output.dense.weight, output.dense.bias), output.LayerNorm


def _fuse(attention: Any) -> tuple[Tensor, Tensor]:
    """One weight and bias for three projections, whose own become views of it to save memory."""
    parts = (attention.query, attention.key, attention.value)
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    for part, its_weight, its_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight.data, part.bias.data = its_weight, its_bias
    return weight, bias


class InferenceEncoder:
    """A model whose weights have the dtype in which they are multiplied.

    Attributes:
        model: the transformers model with its heads.
        layers: what runs instead of the model's layers; None if these run themselves.
    """

    def __init__(self, model: Any, layers: list[Any] | None = None) -> None:
        self.model = model
        self.layers = layers

    def __call__(self, input_ids: Tensor, token_type_ids: Tensor, layout: SequenceLayout) -> Tensor:
        """The last hidden states, shape (tokens, hidden_size); see `encode_unpadded` for the arguments."""
        return run_trunk(
            self.model.base_model,
            input_ids,
            token_type_ids,
            layout.position_ids,
            layout.cu_seqlens,
            layout.longest,
            layers=self.layers,
        )

    def attention_weights(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """The attention weights in one sequence: float32, shape (layers, heads, length, length)."""
        arguments = {"input_ids": input_ids[None]}
        arguments |= token_type_arguments(self.model.config, token_type_ids)
        layers = self._with_weights.base_model(**arguments, output_attentions=True).attentions
        return torch.cat(list(layers)).float()

    @cached_property
    def _with_weights(self) -> Any:
        """The model with attention that forms its weights: modules of its own around the same parameters.

        Others compute with the model meanwhile, so it is never switched to another attention itself.
        """
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        other = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        other.set_attn_implementation("eager")
        return other


def load_for_inference(
    folder: Path, architecture: str, precision: Precision, device: torch.device
) -> InferenceEncoder:
    """Load an encoder and its head from safetensors.

    Args:
        folder: the folder of a model saved by transformers.
        architecture: the name of its transformers class.
        precision: of weights and products. `auto` is int8 on a CPU if the model was quantised, else bf16 if
            that is fast, or fp16 on a GPU that is only fast in fp16.
        device: the device to compute on.

    Raises:
        ConfigError: the class is unknown, there are no safetensors, the model cannot run unpadded, int8 is
            asked of a model that was not quantised or of a GPU, or fp16 of a CPU.
    """
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise ConfigError(f"model: {str(folder)!r} is a {architecture!r}, which transformers does not know")
    try:
        with quietly():
            model = model_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    check_supported(model.config)
    in_int8 = _in_int8(folder, precision, device)
    roundings = read_roundings(folder, model.config.num_hidden_layers) if in_int8 else []
    dtype = _float_dtype(precision, device)
    model = model.to(device=device, dtype=torch.float32 if in_int8 else dtype).eval()
    run_unpadded(model)
    if model.config.model_type not in _FUSABLE:
        return InferenceEncoder(model)
    fused = [FusedLayer(layer) for layer in encoder_layers(model)]
    if not in_int8:
        return InferenceEncoder(model, fused)
    pairs = zip(fused, roundings, strict=True)
    return InferenceEncoder(model, [Int8Layer(layer, rounding, dtype) for layer, rounding in pairs])


def _float_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of weights, and of what is not computed in integers."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: 'fp16' is for GPUs; use 'bf16' or 'fp32' here")
    return compute_dtype("auto" if precision == "int8" else precision, device)


def _in_int8(folder: Path, precision: Precision, device: torch.device) -> bool:
    """Whether a model is to be computed in integers."""
    possible = device.type == "cpu" and has_int8_products()
    if precision == "int8" and not possible:
        raise ConfigError("precision: 'int8' needs a CPU and a torch with oneDNN; use 'bf16' or 'fp32' here")
    return precision == "int8" or (precision == "auto" and possible and (folder / FILE).is_file())
