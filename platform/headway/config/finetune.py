"""Settings of the step `finetune`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from headway.config.base import Config, Fraction, Positive
from headway.config.tasks import AnyTask
from headway.config.training import OptimizerConfig, TrainingConfig


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021): W + alpha / rank · B A is trained in place of W."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Fraction = 0.0
    modules: list[str] = Field(
        [], description="names of the linear layers that are adapted; all of the encoder's when empty"
    )


def _folder_or_settings(task: Any) -> str:
    return "folder" if isinstance(task, str) else "settings"


class FinetuneConfig(TrainingConfig):
    """The step `finetune`: an encoder, a task, a budget."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    batch_size: Positive = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    model: str = Field(min_length=1, description="a folder, a step, or models:/name@alias")
    task: Annotated[
        Annotated[str, Tag("folder")] | Annotated[AnyTask, Tag("settings")],
        Discriminator(_folder_or_settings),
    ] = Field(description="a prepared task, or what to prepare one from")
    random_weights: bool = Field(False, description="the model's shape without its weights: a baseline")
    dropout: Fraction | None = Field(None, description="of hidden states; the model's own when not set")
    attention_dropout: Fraction | None = Field(None, description="likewise, of attention")
    class_weights: Literal["balanced"] | None = Field(None, description="rare labels count for more")
    label_smoothing: Fraction = Field(0.0, description="share of a label spread over all of them")
    layers: Positive | None = Field(None, description="the lowest so many only; all when not set")
    frozen_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="lowest layers, with the embeddings below them, that are not trained"
    )
    lora: LoraConfig | None = Field(None, description="train few weights beside the model's, then merge them")
    seeds: Positive = Field(1, description="runs from consecutive seeds; the best on validation is kept")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="score with so many-fold cross-validation besides, stratified by label"
    )

    @model_validator(mode="after")
    def _adapted_layers_stay_whole(self) -> FinetuneConfig:
        if self.lora is not None and self.parallel.tensor > 1:
            raise ValueError(f"parallel.tensor {self.parallel.tensor} does not go with lora; shard does")
        return self
