"""Small classifiers with random weights for the serving drill, and what transformers answers with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
)

from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.golden import store_golden

LABELS = ["kitchen", "harbour", "garden"]
ARCHITECTURES = ["bert", "distilbert", "modernbert"]
POISON = "xyzzy"
"""The drill's replicas die of a text with this word."""
TEXTS = [
    f"{subject} {verb} the {quality} {thing} and then the {other} {when}, as nobody had expected."
    for subject in ("The sailor", "A baker", "The florist", "Captain Ahab", "My neighbour")
    for verb in ("steers", "slices", "waters", "hunts")
    for quality in ("old", "small", "white")
    for thing in ("boat", "bread", "rose", "whale")
    for other in ("ferry", "hedge")
    for when in ("before noon", "every morning")
]
LOOKED_AT = TEXTS[::40]
"""Texts whose attention weights are asked for."""
_TOLERANCE = {"classify": 1e-3, "attention": 2e-3}  # attention weights are sent in float16


def make_classifier(folder: Path, architecture: str, seed: int) -> Path:
    """Save a classifier with its stored answers."""
    tokenizer = train_tokenizer([*TEXTS, POISON], vocab_size=400, lowercase=True, max_length=64)
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(_config(architecture, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    store_golden(folder, TEXTS[:8])
    return folder


def _config(architecture: str, tokenizer: Any) -> Any:
    shared = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "initializer_range": 0.2,
    }
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    if architecture == "bert":
        return BertConfig(**shared, **sizes)
    if architecture == "distilbert":
        return DistilBertConfig(**shared, dim=128, n_layers=2, n_heads=4, hidden_dim=256)
    special = dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.cls_token_id)
    special |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.sep_token_id)
    return ModernBertConfig(
        **shared,
        **sizes,
        **special,
        local_attention=8,
        global_attn_every_n_layers=2,
        initializer_cutoff_factor=5.0,
    )


class Expected:
    """What one version answers, as transformers computes it: eagerly, and padded.

    Attributes:
        by_operation: for each operation, an array by the text: (labels,) or (layers, heads, length, length).
    """

    def __init__(self, folder: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def run(texts: list[str], **more: bool) -> Any:
            batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
            if model.config.model_type != "bert":  # the others know no segments
                batch.pop("token_type_ids", None)
            with torch.inference_mode():
                return model(**batch, **more)

        probabilities = run(TEXTS).logits.softmax(-1).numpy()
        self.by_operation: dict[str, dict[str, np.ndarray]] = {
            "classify": dict(zip(TEXTS, probabilities, strict=True)),
            "attention": {
                text: torch.cat(run([text], output_attentions=True).attentions).numpy() for text in LOOKED_AT
            },
        }

    def fits(self, operation: str, text: str, values: Any) -> bool:
        """Whether the values are those of the text."""
        expected, got = self.by_operation[operation][text], np.asarray(values)
        return expected.shape == got.shape and bool(np.abs(expected - got).max() < _TOLERANCE[operation])


class Answers:
    """Compares every answer with what the version that it names should say."""

    def __init__(self, expected: dict[str, Expected]) -> None:
        self.expected = expected
        self.by_version: dict[str, int] = {}
        self.by_operation: dict[str, int] = {}
        self.wrong = self.mixed = 0

    def classes(self, body: Any, content: bytes) -> None:
        """Look at an answer of `/v1/classify`."""
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        answer = json.loads(content)
        self._look(
            "classify", answer["version"], texts, [[*row["scores"].values()] for row in answer["data"]]
        )

    def weights(self, body: Any, content: bytes) -> None:
        """Look at an answer of `/v1/attention`."""
        answer = json.loads(content)
        self._look("attention", answer["version"], [body["input"]], [answer["weights"]])

    def _look(self, operation: str, version: str, texts: list[str], rows: list[Any]) -> None:
        self.by_version[version] = self.by_version.get(version, 0) + 1
        self.by_operation[operation] = self.by_operation.get(operation, 0) + 1
        # The version that it names first.
        versions = [version, *(other for other in self.expected if other != version)]
        good = [
            [self.expected[one].fits(operation, text, row) for text, row in zip(texts, rows, strict=True)]
            for one in versions
        ]
        if not all(good[0]):
            self.wrong += 1
            self.mixed += all(any(row) for row in zip(*good, strict=True))
