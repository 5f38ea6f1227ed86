"""An encoder in memory, and every operation that its head allows on a pack of unpadded sequences."""

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
from headway.engine.inference.graph_sizes import graph_sizes
from headway.engine.inference.graphs import PackGraphs, Recorder
from headway.engine.model.gpu_attention import computes_no_padding
from headway.inference.description import describe
from headway.inference.operations import ROWS, HeadOutputs, operations_of, results
from headway.inference.packing import Operation, Pack

_ROW_STEP = 32
"""On a CPU, rows are filled up to a multiple of so many tokens: oneDNN prepares its kernels again for every
length that it has not met. Measured on 2 cores, MiniLM in bf16: a row of a new length takes 11.3 ms, one of
a known length 7 ms, at 29 tokens; at 1,900 tokens it is 189 and 167 ms."""

_NONE = torch.empty(0, dtype=torch.int64)

_gpu_turn = threading.Lock()
"""Packs are launched on a GPU one at a time. While one is computed the next can be prepared and launched."""


class EncoderModel:
    """A folder's encoder and head, ready to compute.

    Attributes:
        description: what it is and can be asked.
        device: where it computes.
        trunk: its encoder.
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
        self._turn = _gpu_turn if self.device.type == "cuda" else contextlib.nullcontext()
        self._mask_id = self._find_mask(folder) if "fill-mask" in self.description.abilities else -1

    def run(self, operation: Operation, pack: Pack) -> list[Any]:
        """Apply an operation to each sequence of a pack. Safe to call from several threads.

        Returns:
            For each sequence, by operation:
            `embed`: float32 (hidden_size,), of unit length;
            `classify`: float32 (labels,), probabilities, or the score itself if there is one label only;
            `fill-mask`: for each hidden word the candidates' ids, int64 (detail,), and probabilities;
            `tokens`: float32 (length, labels), probabilities;
            `answer`: float32 (length, 2), scores of an answer's first and last token;
            `attention`: float16 (layers, heads, length, length).
        """
        with torch.inference_mode():
            batch = self.batch(operation, pack)
            with self._turn:
                finish = begin_copy_to_host(self.compute(operation, batch))
            found = finish().numpy()
        return results(operation, found, pack, batch.masked_positions.numpy(), self.description)

    def record_graphs(self, record: Recorder | None = None) -> int:
        """Let small packs run as CUDA graphs, on a GPU that has a fused kernel for the model's attention.

        Args:
            record: how a computation is recorded, in the place of CUDA.

        Returns:
            How many graphs there are.
        """
        if record is None and not self._suits_graphs():
            return 0
        rows = {name: ROWS[name] for name in operations_of(self.description.abilities)}
        sizes = graph_sizes(self.description.max_length)
        self._row_step = 1  # a graph's row is filled up by itself
        with torch.inference_mode():
            self._graphs = PackGraphs(self._outputs, rows, sizes, self.device, record)
        return len(self._graphs)

    def batch(self, operation: Operation, pack: Pack) -> Batch:
        """A pack with its layout, on the host, and maybe a last sequence of padding that fills its row up.

        Raises:
            ValueError: a token that the model does not know. Once a GPU had looked for it, it could compute
                nothing more in this process.
        """
        if pack.ids.max(initial=0) >= self._vocabulary:
            raise ValueError(f"token {pack.ids.max()} is not among the model's {self._vocabulary}")
        masked = _NONE
        if operation.name == "fill-mask":
            masked = torch.from_numpy(np.flatnonzero(pack.ids == self._mask_id))
        rest = -len(pack.ids) % (1 if operation.name == "attention" else self._row_step)
        # A copy in any case: what comes through Ray is read-only.
        lengths = np.append(pack.lengths, rest) if rest else pack.lengths.copy()
        return Batch.of(
            input_ids=_row(pack.ids, rest),
            token_type_ids=_row(pack.types, rest),
            lengths=torch.from_numpy(lengths),
            labels=_NONE,
            masked_positions=masked,
            masked_labels=_NONE,
            row_ids=_NONE,
        )

    def compute(self, operation: Operation, batch: Batch) -> Tensor:
        """Apply an operation to a batch from the host: one tensor on the device, and nothing is read back."""
        if operation.name == "attention":
            return self._outputs.attention(batch.to(self.device), batch.lengths.tolist())
        found = None if self._graphs is None else self._graphs.run(operation.name, batch)
        if found is None:
            found = self._outputs(operation.name, batch.to(self.device))
        if operation.name == "fill-mask":
            return self._outputs.candidates(found, operation.detail)
        return found

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
            raise ConfigError(f"model: {str(folder)!r} has a head for hidden words, its tokenizer no mask")
        return mask


def _row(values: np.ndarray, rest: int) -> Tensor:
    """Numbers of tokens as int64, and zeros for the rest of the row."""
    row = np.zeros(len(values) + rest, np.int64)
    row[: len(values)] = values
    return torch.from_numpy(row)
