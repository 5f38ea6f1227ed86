"""An encoder in memory, which computes any operation that its head allows on packs of sequences."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.data.batch import Batch
from headway.engine.hardware.device import begin_copy_to_host, default_device
from headway.engine.inference.encoder import load_for_inference
from headway.engine.inference.graph_sizes import ResultRows, graph_sizes
from headway.engine.inference.graphs import PackGraphs, Recorder
from headway.engine.model.gpu_attention import computes_no_padding
from headway.inference.description import describe
from headway.inference.operations import HEADS, HeadOutputs, operations_of, results
from headway.inference.packing import Operation, Pack

_ROW_STEP = 32
"""On a CPU, packs are filled up to a multiple of so many tokens, since oneDNN prepares its kernels again for
every new length. Measured on 2 cores with MiniLM in bf16: 29 tokens take 11.3 ms if the length is new, else
7 ms; 1,900 tokens take 189 and 167 ms."""

_NONE = torch.empty(0, dtype=torch.int64)

_gpu_lock = threading.Lock()
"""Packs are launched on a GPU one at a time. While it computes one, the next can be prepared and launched."""


class EncoderModel:
    """The encoder and head in a folder, ready to compute.

    Attributes:
        description: what it is and can do.
        device: where it computes.
        trunk: the encoder.
        model: the transformers model, head included.
    """

    def __init__(
        self, folder: Path, precision: Precision = "auto", device: torch.device | None = None
    ) -> None:
        self.description = describe(folder)
        self.device = default_device() if device is None else device
        self.trunk = load_for_inference(folder, self.description.architecture, precision, self.device)
        self.model = self.trunk.model
        self._vocabulary = self.model.get_input_embeddings().num_embeddings
        self._outputs = HeadOutputs(self.trunk, self.description)
        self._row_step = _ROW_STEP if self.device.type == "cpu" else 1
        self._graphs: PackGraphs | None = None
        self._lock = _gpu_lock if self.device.type == "cuda" else contextlib.nullcontext()
        self._mask_id = self._find_mask(folder) if "fill-mask" in self.description.abilities else -1

    def run(self, operation: Operation, pack: Pack) -> list[Any]:
        """Apply an operation to each sequence of a pack. Several threads may call this at once.

        Returns:
            For each sequence:
            with `embed`, an embedding of unit length, float32 (embedding_size,);
            with `classify`, probabilities, or the score if there is one label, float32 (labels,);
            with `tokens`, probabilities, float32 (length, labels);
            with `answer`, scores as the first and as the last token of an answer, float32 (length, 2);
            with `fill-mask`, for each mask the ids of the likeliest words, int64 (candidates,), and their
            probabilities, float32 (candidates,);
            with `attention`, weights, float16 (layers, heads, length, length).
        """
        with torch.inference_mode():
            batch = self.batch(operation, pack)
            with self._lock:
                finish = begin_copy_to_host(self.compute(operation, batch))
            output = finish().numpy()
        return results(operation, output, pack, batch.masked_positions.numpy(), self.description)

    def record_graphs(self, record: Recorder | None = None) -> int:
        """Record CUDA graphs for small packs, on a GPU with a fused kernel for the model's attention.

        Args:
            record: records a computation; CUDA does if this is None.

        Returns:
            The number of graphs.
        """
        if record is None and not self._suits_graphs():
            return 0
        rows: dict[str, ResultRows] = {
            name: HEADS[name].rows for name in operations_of(self.description.abilities)
        }
        sizes = graph_sizes(self.description.max_length)
        self._row_step = 1  # graphs fill packs up to their own sizes
        with torch.inference_mode():
            self._graphs = PackGraphs(self._outputs, rows, sizes, self.device, record)
        return len(self._graphs)

    def batch(self, operation: Operation, pack: Pack) -> Batch:
        """A pack as a batch on the host, filled up with one more sequence of padding if need be.

        Raises:
            ValueError: a token is not in the model's vocabulary. A GPU that looked it up could compute
                nothing more in this process.
        """
        if pack.ids.max(initial=0) >= self._vocabulary:
            raise ValueError(f"token {pack.ids.max()} is not among the model's {self._vocabulary}")
        masked = _NONE
        if operation.name == "fill-mask":
            masked = torch.from_numpy(np.flatnonzero(pack.ids == self._mask_id))
        padding = -len(pack.ids) % (1 if operation.name == "attention" else self._row_step)
        # A copy in any case, since arrays that come through Ray are read-only.
        lengths = np.append(pack.lengths, padding) if padding else pack.lengths.copy()
        return Batch.of(
            input_ids=_padded(pack.ids, padding),
            token_type_ids=_padded(pack.types, padding),
            lengths=torch.from_numpy(lengths),
            labels=_NONE,
            masked_positions=masked,
            masked_labels=_NONE,
            row_ids=_NONE,
        )

    def compute(self, operation: Operation, batch: Batch) -> Tensor:
        """Apply an operation to a batch from the host.

        Returns:
            One tensor on the device. Nothing was read back from there.
        """
        if operation.name == "attention":
            return self._outputs.attention(batch.to(self.device), batch.lengths.tolist())
        output = None if self._graphs is None else self._graphs.run(operation.name, batch)
        if output is None:
            output = self._outputs(operation.name, batch.to(self.device))
        if operation.name == "fill-mask":
            return self._outputs.candidates(output, operation.candidates)
        return output

    def _suits_graphs(self) -> bool:
        head_dim = self.description.hidden_size // self.description.heads
        windowed = self.model.config.model_type == "modernbert"
        return self.device.type == "cuda" and computes_no_padding(
            self.model.dtype, head_dim, self.device, windowed
        )

    @staticmethod
    def _find_mask(folder: Path) -> int:
        from headway.inference.tokens import TextTokenizer

        mask = TextTokenizer(folder, 8).mask_id
        if mask is None:
            raise ConfigError(
                f"model: {str(folder)!r} has a head for masked words, but its tokenizer has no mask"
            )
        return mask


def _padded(values: np.ndarray, padding: int) -> Tensor:
    """A value for each token, then zeros, int64 (tokens + padding,)."""
    padded = np.zeros(len(values) + padding, np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)
