"""Load an encoder for inference, with layers that are faster than transformers' own."""

from __future__ import annotations

import copy
import itertools
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.engine.formats.packed import is_packed, packed_bits, unpacked_folder
from headway.engine.hardware.device import compute_dtype
from headway.engine.inference.fused_layers import fused_layer
from headway.engine.inference.int8 import FILE, has_int8_products, read_roundings
from headway.engine.inference.int8_layers import int8_layer
from headway.engine.inference.packed import drop_floats, packed_layers
from headway.engine.model.encoder import model_class, quietly
from headway.engine.model.layout import SequenceLayout
from headway.engine.model.unpadded import (
    check_supported,
    encoder_layers,
    run_trunk,
    run_unpadded,
    token_type_arguments,
)


class InferenceEncoder:
    """A model whose weights have the dtype in which they are multiplied.

    Attributes:
        model: the transformers model with its heads.
        layers: what runs instead of the model's layers.
    """

    def __init__(self, model: Any, layers: list[Any]) -> None:
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
        folder: the folder of a model saved by transformers; its weights may be packed, and then stay so.
        architecture: the name of its transformers class.
        precision: of weights and products. `auto` is int8 on a CPU if the model was quantised, else bf16 if
            that is fast, or fp16 on a GPU that is only fast in fp16.
        device: the device to compute on.

    Raises:
        ConfigError: the class is unknown, there are no safetensors, the model cannot run unpadded, int8 is
            asked of a model that was not quantised or of a GPU, or fp16 of a CPU.
    """
    kind = model_class(architecture)
    if kind is None:
        raise ConfigError(f"model: {str(folder)!r} is a {architecture!r}, which transformers does not know")
    bits = packed_bits(folder) if is_packed(folder) else None
    try:
        with quietly(), unpacked_folder(folder) as plain:
            model = kind.from_pretrained(
                plain,
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
    # What is rounded to integers is rounded from float32.
    model = model.to(device=device, dtype=torch.float32 if in_int8 or bits else dtype).eval()
    run_unpadded(model)
    layers: list[Any] = [fused_layer(layer, model.config.model_type) for layer in encoder_layers(model)]
    if in_int8:
        pairs = zip(layers, roundings, strict=True)
        layers = [int8_layer(layer, rounding, dtype) for layer, rounding in pairs]
    elif bits:
        layers = packed_layers(layers, bits, dtype)
    if bits:
        drop_floats(model, bits, torch.float32 if in_int8 else dtype)
    return InferenceEncoder(model if in_int8 else model.to(dtype), layers)


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
