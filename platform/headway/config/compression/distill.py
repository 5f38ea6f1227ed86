"""Settings of distillation: what a model learns from a larger one while it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from headway.config.base import INPUT, Config

Weight = Annotated[float, Field(ge=0.0)]


class DistillConfig(Config):
    """A teacher, whose outputs a model learns to give beside its own loss (Hinton et al. 2015)."""

    teacher: str = Field(
        min_length=1,
        description="a model fine-tuned on the same task: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    labels: Weight = Field(1.0, description="weight of the loss on the rows' own labels")
    logits: Weight = Field(
        1.0,
        description="weight of the loss against the teacher's outputs: probabilities of classes, scores, or "
        "the similarities of a micro-batch's texts",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        2.0, description="by which both models' scores are divided before they become probabilities"
    )

    @model_validator(mode="after")
    def _something_is_learnt_from_the_teacher(self) -> DistillConfig:
        if not self.logits:
            raise ValueError("logits 0.0 learns nothing from the teacher; leave distill out")
        return self
