"""Settings of the step `finetune`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from headway.config.base import INPUT, Config, ConfigError, Fraction, Positive
from headway.config.compression.distill import DistillConfig
from headway.config.mistakes import check_measure
from headway.config.tasks import AnyTask
from headway.config.training import OptimizerConfig, TrainingConfig

_KINDS_THAT_TAKE = {
    "class_weights": ("classification", "multi-label", "tokens"),
    "label_smoothing": ("classification", "tokens"),
}


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021): trains W + alpha / rank · B A instead of W."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Fraction = 0.0
    modules: list[str] = Field(
        [], description="names of the linear layers to adapt; if empty, all of the encoder's"
    )


def folder_or_settings(task: Any) -> str:
    """Which of both a task is given as."""
    return "folder" if isinstance(task, str) else "settings"


class FinetuneConfig(TrainingConfig):
    """The step `finetune`: an encoder, a task, a budget."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    batch_size: Positive = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    model: str = Field(
        min_length=1, description="a folder, a step, or models:/name@alias", json_schema_extra=INPUT
    )
    task: Annotated[
        Annotated[str, Tag("folder")] | Annotated[AnyTask, Tag("settings")],
        Discriminator(folder_or_settings),
    ] = Field(
        description="the folder of a prepared task, or the settings to prepare one", json_schema_extra=INPUT
    )
    random_weights: bool = Field(
        False, description="start from random weights of the model's shape: a baseline"
    )
    dropout: Fraction | None = Field(None, description="of hidden states; if not set, the model's own")
    attention_dropout: Fraction | None = Field(
        None, description="of attention weights; if not set, the model's own"
    )
    class_weights: Literal["balanced"] | None = Field(
        None, description="`balanced` gives rare labels more weight"
    )
    label_smoothing: Fraction = Field(
        0.0, description="fraction of a label's probability that is spread over all labels"
    )
    layers: Positive | None = Field(
        None, description="keep only this many of the lowest layers; all if not set"
    )
    frozen_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="how many of the lowest layers, and the embeddings below them, are not trained"
    )
    lora: LoraConfig | None = Field(
        None, description="train a few weights beside the model's, then merge them"
    )
    distill: DistillConfig | None = Field(None, description="also learn from a teacher's outputs")
    quantize_aware: Literal["int8", "int4"] | None = Field(
        None,
        description="round numbers in training as `quantize` will, so that the model learns to do without "
        "what is lost; int8: inputs and weights of the layers' products; int4: all weights that are packed",
    )
    seeds: Positive = Field(
        1, description="runs with consecutive seeds; the best on the validation rows is kept"
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="also score by cross-validation with this many folds, stratified by class, groups whole",
    )

    @model_validator(mode="after")
    def _settings_suit_the_task(self) -> FinetuneConfig:
        if not isinstance(self.task, str):
            check_task(self, self.task.kind)
            check_measure("best_by", self.best_by, self.task.measures)
        return self

    @model_validator(mode="after")
    def _lora_is_not_split(self) -> FinetuneConfig:
        if self.lora is not None and self.parallel.tensor > 1:
            raise ValueError(f"parallel.tensor {self.parallel.tensor} does not go with lora; shard does")
        return self

    @model_validator(mode="after")
    def _rounded_layers_are_whole(self) -> FinetuneConfig:
        if self.quantize_aware is not None and (self.lora is not None or self.parallel.splits_model):
            raise ValueError(
                "quantize_aware does not go with lora, nor with parallel.shard, tensor and pipeline"
            )
        return self

    @model_validator(mode="after")
    def _a_student_is_not_split(self) -> FinetuneConfig:
        if self.distill is not None and self.parallel.splits_model:
            raise ValueError("distill does not go with parallel.shard, tensor and pipeline; workers do")
        return self


def check_task(config: FinetuneConfig, kind: str) -> None:
    """Refuse what does nothing for a kind of task, so that nobody thinks that it did.

    Raises:
        ConfigError: names the setting and the kinds it is for.
    """
    given = {
        "class_weights": config.class_weights is not None,
        "label_smoothing": config.label_smoothing > 0.0,
    }
    for name, kinds in _KINDS_THAT_TAKE.items():
        if given[name] and kind not in kinds:
            raise ConfigError(f"{name} does nothing for a task of kind {kind}, only for: {', '.join(kinds)}")
