"""Rows and batches as users of transformers make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from lib.training_speed.setup import Setup

_STEPS_AN_EPOCH = {"cpu": 40, "cuda": 150}
"""The text is repeated to so many steps at least, so that no epoch, whose start costs a peer a new sampler,
ends while steps are timed."""
_COLLATED = ("input_ids", "special_tokens_mask")


def peer_dataset(setup: Setup, *, packed: bool = False) -> Any:
    """A data set with what transformers' example scripts and samplers want to know of each row.

    Args:
        setup: the text.
        packed: rows are the text end to end, cut to the full length, instead of one row each.
    """
    import datasets

    paragraphs = setup.paragraphs
    rows = _packed(paragraphs.rows(), paragraphs.max_length) if packed else paragraphs.rows()
    special = np.asarray(paragraphs.tokenizer.all_special_ids)
    dataset = datasets.Dataset.from_dict(
        {
            "input_ids": rows,
            # Without it, the collator looks every token up in Python.
            "special_tokens_mask": [np.isin(row, special).astype(np.int8) for row in rows],
            # Without it, grouping by length reads every row first.
            "length": [len(row) for row in rows],
        }
    )
    wanted = setup.sequences * _STEPS_AN_EPOCH[setup.device.type]
    return datasets.concatenate_datasets([dataset] * math.ceil(wanted / len(rows)))


def _packed(rows: list[list[int]], max_length: int) -> list[list[int]]:
    flat = [token for row in rows for token in row]
    return [flat[start : start + max_length] for start in range(0, len(flat) - max_length, max_length)]


class MaskingCollator:
    """Pads rows to the longest and hides words.

    Packed rows need no attention mask; attention has faster kernels without one.
    """

    def __init__(self, setup: Setup, *, packed: bool = False) -> None:
        self._collate = DataCollatorForLanguageModeling(
            setup.paragraphs.tokenizer, mlm_probability=setup.size.masking
        )
        self._packed = packed

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors `input_ids`, `labels` and, unless packed, `attention_mask`, shape (rows, longest)."""
        batch = self._collate([{name: row[name] for name in _COLLATED} for row in rows])
        names = ("input_ids", "labels") if self._packed else ("input_ids", "labels", "attention_mask")
        return {name: batch[name] for name in names}


def real_tokens(batch: dict[str, Tensor]) -> int | Tensor:
    """Tokens of a batch that are not padding; counted on its device, and not read."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else mask.sum()
