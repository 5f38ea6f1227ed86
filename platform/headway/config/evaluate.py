"""Settings of the step `evaluate`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from headway.config.base import Config, Positive
from headway.config.tasks import AnyTask


class EvaluateConfig(Config):
    """The step `evaluate`: the held-out score, beside baselines on the same split."""

    model: str = Field(min_length=1, description="a fine-tuned model")
    beside: dict[str, str] = Field(
        {}, description="name → another fine-tuned model, scored on the same rows: what a stage bought"
    )
    encoder: str | None = Field(None, description="the encoder it came from; needed for baselines")
    task: AnyTask
    finetune: dict[str, Any] = Field({}, description="the budget of every run with few labels")
    few_labels: list[Positive] = Field([], description="labels a class, of a learning curve")
    seeds: Positive = 3
