"""An encoder in memory, and every operation that its head allows on a pack of unpadded sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.engine.hardware.device import default_device
from headway.engine.inference.encoder import load_for_inference
from headway.engine.model.heads import (
    answer_logits,
    mean_pooled,
    sequence_logits,
    token_logits,
    vocabulary_logits,
)
from headway.engine.model.layout import SequenceLayout, layout_of_lengths
from headway.inference.description import describe
from headway.inference.packing import Operation, Pack

_ROW_STEP = 32
"""Rows are filled up to a multiple of so many tokens: oneDNN prepares its kernels anew for every length
that it has not met. Measured on 2 cores, MiniLM in bf16: a row of a new length takes 11.3 ms, one of a
known length 7 ms, at 29 tokens; at 1,900 tokens it is 189 and 167 ms."""


class EncoderModel:
    """A folder's encoder and head, ready to compute."""

    def __init__(self, folder: Path, precision: Precision = "auto") -> None:
        self.description = describe(folder)
        self.device = default_device()
        self.trunk = load_for_inference(folder, self.description.architecture, precision, self.device)
        self.model = self.trunk.model
        self._mask_id = self._find_mask(folder) if "fill-mask" in self.description.abilities else -1

    def run(self, operation: Operation, pack: Pack) -> list[Any]:
        """Apply an operation to each sequence of a pack.

        Returns:
            For each sequence, by operation:
            `embed`: float32 (hidden_size,), of unit length;
            `classify`: float32 (labels,), probabilities, or the score itself where there is one label only;
            `fill-mask`: for each hidden word the candidates' ids, int64 (detail,), and probabilities;
            `tokens`: float32 (length, labels), probabilities;
            `answer`: float32 (length, 2), scores of an answer's first and last token;
            `attention`: float16 (layers, heads, length, length).
        """
        with torch.inference_mode():
            return self._run(operation, pack)[: len(pack.lengths)]

    def _run(self, operation: Operation, pack: Pack) -> list[Any]:
        ids, types, layout = self._row(pack)
        if operation.name == "attention":
            return self._attention(ids, types, layout)
        hidden = self.trunk(ids, types, layout)
        match operation.name:
            case "embed":
                return self._embed(hidden, layout)
            case "classify":
                return self._classify(hidden, layout)
            case "fill-mask":
                return self._fill_mask(hidden, ids, layout, operation.detail)
            case "tokens":
                return _by_sequence(token_logits(self.model, hidden).float().softmax(-1), layout)
            case "answer":
                return _by_sequence(answer_logits(self.model, hidden).float(), layout)
        raise ValueError(f"no operation {operation.name!r}")

    def _row(self, pack: Pack) -> tuple[Tensor, Tensor, SequenceLayout]:
        """The pack's ids, types and layout, with a last sequence of padding that fills the row up."""
        rest = -len(pack.ids) % _ROW_STEP
        ids = np.concatenate([pack.ids, np.zeros(rest, np.int32)]).astype(np.int64)
        types = np.concatenate([pack.types, np.zeros(rest, np.uint8)]).astype(np.int64)
        lengths = np.append(pack.lengths, rest) if rest else pack.lengths
        place = self.device
        layout = layout_of_lengths(torch.from_numpy(lengths), place)
        return torch.from_numpy(ids).to(place), torch.from_numpy(types).to(place), layout

    def _embed(self, hidden: Tensor, layout: SequenceLayout) -> list[np.ndarray]:
        if self.description.pooling == "cls":
            pooled = hidden.index_select(0, layout.first_tokens).float()
        else:
            pooled = mean_pooled(hidden.float(), layout)
        return list(F.normalize(pooled, dim=-1).cpu().numpy())

    def _classify(self, hidden: Tensor, layout: SequenceLayout) -> list[np.ndarray]:
        logits = sequence_logits(self.model, hidden, layout).float()
        if self.description.multi_label:
            logits = logits.sigmoid()
        elif logits.size(1) > 1:
            logits = logits.softmax(-1)
        return list(logits.cpu().numpy())

    def _fill_mask(
        self, hidden: Tensor, ids: Tensor, layout: SequenceLayout, candidates: int
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        places = (ids == self._mask_id).nonzero().flatten()
        scores = vocabulary_logits(self.model, hidden.index_select(0, places)).float().softmax(-1)
        best = scores.topk(min(candidates, scores.size(-1)))
        owners = torch.bucketize(places, layout.cu_seqlens[1:], right=True).tolist()
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(len(layout.lengths))]
        for owner, words, values in zip(owners, best.indices.cpu(), best.values.cpu(), strict=True):
            found[owner].append((words.numpy(), values.numpy()))
        return found

    def _attention(self, ids: Tensor, types: Tensor, layout: SequenceLayout) -> list[np.ndarray]:
        lengths = layout.lengths.tolist()
        return [
            self.trunk.attention_weights(one, kinds).to(torch.float16).cpu().numpy()
            for one, kinds in zip(ids.split(lengths), types.split(lengths), strict=True)
        ]

    @staticmethod
    def _find_mask(folder: Path) -> int:
        from headway.inference.tokens import TextTokenizer

        mask = TextTokenizer(folder, 8).mask_id
        if mask is None:
            raise ConfigError(f"model: {str(folder)!r} has a head for hidden words, its tokenizer no mask")
        return mask


def _by_sequence(rows: Tensor, layout: SequenceLayout) -> list[np.ndarray]:
    return [part.cpu().numpy() for part in rows.split(layout.lengths.tolist())]
