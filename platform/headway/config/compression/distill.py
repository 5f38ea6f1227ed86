"""Settings of distillation: what a model learns from a larger one while it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from headway.config.base import INPUT, Config, Positive

Weight = Annotated[float, Field(ge=0.0)]


class DistillConfig(Config):
    """A teacher, from which a model learns beside its own loss."""

    teacher: str = Field(
        min_length=1,
        description="a model fine-tuned on the same task or, for pretraining, one that predicts masked words "
        "of the same vocabulary: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    labels: Weight = Field(1.0, description="weight of the loss on the rows' own labels, or masked words")
    logits: Weight = Field(
        1.0,
        description="weight of the loss against the teacher's outputs (Hinton et al. 2015): probabilities of "
        "classes or words, scores, or the similarities of a micro-batch's texts",
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(
        2.0, description="by which both models' scores are divided before they become probabilities"
    )

    hidden: Weight = Field(
        0.0,
        description="weight of the loss against the directions of the teacher's hidden states, each layer's "
        "against those of the teacher's layer at the same height; the teacher then runs beside its student",
    )
    relations: Weight = Field(
        0.0,
        description="weight of the loss against the relations of tokens by queries, keys and values of the "
        "teacher's layer (Wang et al. 2021, MiniLMv2); the teacher then runs beside its student",
    )
    relation_heads: Positive | None = Field(
        None,
        description="relation heads, a divisor of both models' hidden_size; if not set, the student's heads",
    )
    teacher_layer: Positive | None = Field(
        None,
        description="the teacher's layer, counted from 1, whose relations the student's last layer learns; "
        "if not set, its last",
    )

    @model_validator(mode="after")
    def _something_is_learnt_from_the_teacher(self) -> DistillConfig:
        if not self.logits and not self.looks_inside:
            raise ValueError(f"logits {self.logits:g} learns nothing from the teacher; leave distill out")
        if not self.relations and (self.relation_heads or self.teacher_layer):
            raise ValueError("relation_heads and teacher_layer do nothing without relations")
        return self

    @property
    def looks_inside(self) -> bool:
        """Whether the student learns from more than the teacher's outputs."""
        return self.hidden > 0.0 or self.relations > 0.0
