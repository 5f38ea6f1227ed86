"""From an encoder's hidden states to a vector for each text, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from headway.config.base import ConfigError
from headway.engine.inference.pooling import pooled
from headway.engine.model.layout import SequenceLayout
from headway.inference.sentence_modules import DenseModule, LayerNormModule, SentenceModules, VectorModule


class SentenceHead:
    """Pooling and what follows it, in float32.

    Args:
        modules: what is done, in order.
        hidden_size: of the encoder.
        device: where its weights are.

    Raises:
        ConfigError: weights that do not fit.
    """

    def __init__(self, modules: SentenceModules, hidden_size: int, device: torch.device) -> None:
        self._poolings = modules.poolings
        self._layers: list[Callable[[Tensor], Tensor]] = []
        width = hidden_size * len(modules.poolings)
        for module in modules.vector_modules:
            layer = _layer(module, width)
            width = module.outputs if isinstance(module, DenseModule) else width
            self._layers.append(layer.to(device).eval() if isinstance(layer, nn.Module) else layer)

    def __call__(self, hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
        """Vectors of unit length: float32, shape (sequences, width).

        Args:
            hidden_states: floating, shape (tokens, hidden_size).
            layout: the sequences' boundaries in the row.
        """
        hidden = hidden_states.float()
        parts = [pooled(hidden, layout, pooling) for pooling in self._poolings]
        vectors = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        for layer in self._layers:
            vectors = layer(vectors)
        return F.normalize(vectors, dim=-1)


class _Dense(nn.Module):
    """Its parameters have the names that sentence-transformers gives them."""

    def __init__(self, module: DenseModule) -> None:
        super().__init__()
        self.linear = nn.Linear(module.inputs, module.outputs, module.bias)
        self.activation = getattr(nn, module.activation)()
        self.adds_input = module.residual
        if module.residual and module.inputs != module.outputs:
            self.residual = nn.Linear(module.inputs, module.outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.activation(self.linear(vectors))
        if not self.adds_input:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class _LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.norm(vectors)
        return found


def _layer(module: VectorModule, width: int) -> Callable[[Tensor], Tensor]:
    match module:
        case DenseModule():
            return _loaded(_Dense(module), module.folder, module.inputs, width)
        case LayerNormModule():
            return _loaded(_LayerNorm(module.width), module.folder, module.width, width)
        case _:
            return lambda vectors: F.normalize(vectors, dim=-1)


def _loaded(layer: nn.Module, folder: Path, inputs: int, width: int) -> nn.Module:
    if inputs != width:
        raise ConfigError(f"model: {str(folder)!r} takes vectors of {inputs} numbers; it is given {width}")
    try:
        layer.float().load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model: {str(folder)!r} has weights that do not fit: {reason}") from error
    return layer.requires_grad_(False)
