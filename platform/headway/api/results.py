"""What training returns in Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and its metrics.

    Attributes:
        path: a folder in transformers' format: weights, configuration and tokenizer.
        validation_loss: at the end of pretraining, or of the model that fine-tuning kept.
        metrics: all figures of the step's summary.
    """

    path: Path
    validation_loss: float
    metrics: dict[str, Any]

    @cached_property
    def model(self) -> Any:
        """The model, loaded by transformers."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        return getattr(transformers, config.architectures[0]).from_pretrained(
            self.path, local_files_only=True
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded by transformers."""
        from headway.data.corpus.tokenizer import load_tokenizer

        return load_tokenizer(self.path)
