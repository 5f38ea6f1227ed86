"""Static embeddings: a table with a vector for each token, as an encoder without layers.

The hidden state of a token is its row of the table, whatever stands around it, and a text's vector is the
mean of its tokens'. The weights have the names that sentence-transformers' `StaticEmbedding` reads, and every
folder gets the files that make it a `SentenceTransformer`:

    StaticEmbedding → Normalize

Special tokens have rows of zeros, so they do not change a vector's direction: sentence-transformers leaves
them out, and Headway frames every text with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

MODEL_TYPE = "static"
MAX_TOKENS = 8192
"""Tokens of a text at most. A table has no positions; what is computed at a time must have an end."""


class StaticEmbeddingConfig(PreTrainedConfig):
    """The shape of a table.

    Attributes:
        ignored_token_ids: tokens that say nothing, special ones for example.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 30522
    hidden_size: int = 256
    num_hidden_layers: int = 0
    num_attention_heads: int = 1
    max_position_embeddings: int = MAX_TOKENS
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    ignored_token_ids: list[int] | None = None
    tie_word_embeddings: bool = False


class TokenVectors(nn.Embedding):
    """A row for each token; those of ignored ones are zeros, and stay zeros in training."""

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self._ignored = tuple(config.ignored_token_ids or ())

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows, shape (…, hidden_size)."""
        rows = super().forward(input_ids)
        if not self.training:
            return rows
        ignored = torch.zeros_like(input_ids, dtype=torch.bool)
        for number in self._ignored:
            ignored |= input_ids == number
        return rows.masked_fill(ignored[..., None], 0.0)

    @torch.no_grad()
    def clear_ignored(self) -> None:
        """Make the rows of ignored tokens zeros."""
        self.weight[list(self._ignored)] = 0.0


class StaticEmbeddingModel(PreTrainedModel):
    """A table of token vectors."""

    config_class = StaticEmbeddingConfig
    base_model_prefix = "encoder"

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config)
        self.embedding: Any = TokenVectors(config)
        self.layers = nn.ModuleList()
        self.post_init()

    @property
    def embeddings(self) -> TokenVectors:
        """What gives the hidden states, by the name that other encoders have for it."""
        return self.embedding

    def get_input_embeddings(self) -> nn.Module:
        """The table."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table."""
        self.embedding = value

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Do nothing, as there is no attention."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenVectors):
            module.clear_ignored()


class StaticEmbeddingForSequenceClassification(StaticEmbeddingModel):
    """A table, and a linear layer on the direction of a text's vector."""

    def __init__(self, config: StaticEmbeddingConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def scores(self, means: Tensor) -> Tensor:
        """Scores of classes, (sequences, num_labels), from mean vectors, (sequences, hidden_size).

        The vectors are scaled so that their numbers have a mean square of 1, as a layer's inputs should.
        """
        scores: Tensor = self.classifier(F.normalize(means, dim=-1) * means.size(-1) ** 0.5)
        return scores


AutoConfig.register(MODEL_TYPE, StaticEmbeddingConfig)
AutoModel.register(StaticEmbeddingConfig, StaticEmbeddingModel)
AutoModelForSequenceClassification.register(StaticEmbeddingConfig, StaticEmbeddingForSequenceClassification)


def write_sentence_files(folder: Path) -> None:
    """Write what makes the folder of a table a `SentenceTransformer`."""
    modules = [("", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2), encoding="utf-8")
    (folder / "1_Normalize").mkdir(exist_ok=True)
