"""What training leaves, as Python sees it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainedModel:
    """What training leaves.

    Attributes:
        path: a folder in transformers' format: weights, configuration and tokenizer.
        validation_loss: of the held-out data, at the end.
        metrics: everything else that was measured.
    """

    path: Path
    validation_loss: float
    metrics: dict[str, Any]

    @cached_property
    def model(self) -> Any:
        """The transformers model."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        return getattr(transformers, config.architectures[0]).from_pretrained(
            self.path, local_files_only=True
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        from headway.data.corpus.tokenizer import load_tokenizer

        return load_tokenizer(self.path)
