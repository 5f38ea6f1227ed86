"""Settings of the steps `evaluate` and `choose`, which score fine-tuned models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from headway.config.base import INPUT, Config, Positive
from headway.config.finetune import FinetuneConfig
from headway.config.tasks import AnyTask


class EvaluateConfig(Config):
    """The step `evaluate`: the score on held-out rows, beside baselines on the same split."""

    model: str = Field(min_length=1, description="a fine-tuned model", json_schema_extra=INPUT)
    beside: dict[str, str] = Field(
        {}, description="name → another fine-tuned model, to score on the same rows", json_schema_extra=INPUT
    )
    encoder: str | None = Field(
        None,
        description="the encoder that the model came from; needed for baselines",
        json_schema_extra=INPUT,
    )
    task: AnyTask
    finetune: dict[str, Any] = Field({}, description="settings of every run with few labels")
    few_labels: list[Positive] = Field(
        [],
        description="numbers of labels per class, or of rows if there are no classes, for a learning curve; "
        "needs `encoder`",
    )
    seeds: Positive = 3

    def nested_settings(self) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
        """See `Config`."""
        yield "finetune", FinetuneConfig, {"model": self.model, "task": self.task} | self.finetune


class ChooseConfig(Config):
    """The step `choose`: of several fine-tuned models, the one with the best score on validation rows."""

    among: dict[str, str] = Field(
        min_length=2,
        description="name → a fine-tuned model; of equally good ones, the first is chosen",
        json_schema_extra=INPUT,
    )
    task: AnyTask
