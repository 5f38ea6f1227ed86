"""Every setting a user can write, typed. Reading YAML and overrides lives in `config_files`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Preset = Literal["bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


class ConfigError(ValueError):
    """Something the user can put right: a bad value, a missing file, text that is no text.

    Its message is one line that names the field, the value and what is allowed.
    """


class Config(BaseModel):
    """Base of all settings: an unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SourceConfig(Config):
    """Where text comes from."""

    source: str = Field(
        min_length=1,
        description="a folder of .txt, a .jsonl/.csv/.parquet file, a `datasets` name or path, or bbc-news",
    )
    text_column: str = "text"
    split: str = Field("train", description="which split of a `datasets` source")
    encoding: str = Field("utf-8", description="of .txt, .jsonl and .csv files")
    held_out: Fraction = Field(0.2, gt=0.0, description="share of documents never trained on")


class CorpusConfig(SourceConfig):
    """The step `corpus`: text → tokenizer → token store."""

    vocab_size: Annotated[int, Field(ge=64, le=1_000_000)] = 30_000
    lowercase: bool = True
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    tokenizer: Path | None = Field(None, description="folder of a tokenizer to use instead of training one")


class ModelConfig(Config):
    """The shape of an encoder trained from scratch: a preset, and what departs from it."""

    preset: Preset = "bert-base"
    num_hidden_layers: Positive | None = None
    hidden_size: Positive | None = None
    num_attention_heads: Positive | None = None
    dropout: Fraction = 0.1
    # Scaled dot-product attention on a CPU has no fast kernel with dropout, and encoders train as well
    # without it (Geiping and Goldstein 2022, "Cramming", section 4.3).
    attention_dropout: Fraction = 0.0

    def shape_overrides(self) -> dict[str, int]:
        """The sizes that were set explicitly."""
        names = {"num_hidden_layers", "hidden_size", "num_attention_heads"}
        return self.model_dump(include=names, exclude_none=True)


class MaskingConfig(Config):
    """Masked language modelling: 80 % [MASK], 10 % a random token, 10 % unchanged (Devlin et al. 2018)."""

    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_words: bool = False


class OptimizerConfig(Config):
    """An optimizer by name."""

    name: Literal["adamw", "lamb", "lion", "adafactor"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-6


class ScheduleConfig(Config):
    """The course of the learning rate."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = Field(default=0.1, description="share of all steps")


class TrainingConfig(Config):
    """What pretraining and fine-tuning share."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    steps: Positive | None = None
    batch_size: Positive = Field(64, description="sequences an optimizer step, over all workers")
    accumulation: Positive = Field(1, description="micro-batches an optimizer step, on each worker")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is fast")
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = Field(0, description="Ray Train workers; 0 trains without Ray")
    log_every: Positive = Field(10, description="steps between reports of the training loss")
    evaluate_every: Positive | None = Field(None, description="steps; a tenth of the run when not set")
    checkpoint_every: Positive | None = Field(None, description="steps; a fifth of the run when not set")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.batch_size < max(1, self.workers) * self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is less than workers x accumulation, "
                f"{max(1, self.workers) * self.accumulation}"
            )
        return self

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the whole run over `rows` training rows; one epoch if nothing is set."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 1.0) * rows / self.batch_size))


class PretrainConfig(TrainingConfig):
    """The step `pretrain`."""

    corpus: str | CorpusConfig = Field(description="a prepared corpus, or what to prepare one from")
    model: str | ModelConfig = Field(ModelConfig(), description="a shape, or a folder to continue from")
    objective: list[Literal["mlm", "nsp"]] = ["mlm", "nsp"]
    masking: MaskingConfig = MaskingConfig()
    validation_rows: Positive = Field(512, description="held-out rows that the validation loss is over")

    @model_validator(mode="after")
    def _masks_words(self) -> PretrainConfig:
        if "mlm" not in self.objective or len(set(self.objective)) != len(self.objective):
            raise ValueError("objective must be [mlm] or [mlm, nsp]")
        return self


class ClassificationTask(SourceConfig):
    """Texts with one label each."""

    kind: Literal["classification"] = "classification"
    label_column: str = "label"
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    validation: Fraction = Field(0.15, gt=0.0, description="share of the training texts that selects")
    labels_per_class: Positive | None = Field(None, description="train on so many only; all when not set")


class FinetuneConfig(TrainingConfig):
    """The step `finetune`: an encoder, a task, a budget."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    batch_size: Positive = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    model: str = Field(min_length=1, description="a folder, a step, or models:/name@alias")
    task: str | ClassificationTask = Field(description="a prepared task, or what to prepare one from")
    random_weights: bool = Field(False, description="the model's shape without its weights: a baseline")


SearchSpace = dict[str, str | list[Any]]


class SweepConfig(Config):
    """The step `sweep`: fine-tuning over a search space, on Ray Tune."""

    model: str = Field(min_length=1)
    task: ClassificationTask
    search: SearchSpace = Field(
        {"optimizer.learning_rate": "loguniform(1e-5, 1e-3)", "optimizer.name": ["adamw", "lamb"]},
        min_length=1,
        description="dotted path of a fine-tuning setting → loguniform(a, b), uniform(a, b) or a list",
    )
    samples: Positive = 8
    scheduler: Literal["asha", "fifo"] = "asha"
    metric: Literal["accuracy", "loss"] = "accuracy"
    concurrency: Positive | None = Field(None, description="trials at once; a core each when not set")
    finetune: dict[str, Any] = Field({}, description="settings that every trial shares")
    seed: Annotated[int, Field(ge=0)] = 0


class EvaluateConfig(Config):
    """The step `evaluate`: the held-out score, beside baselines on the same split."""

    model: str = Field(min_length=1, description="a classifier")
    encoder: str | None = Field(None, description="the encoder it came from; needed for baselines")
    task: ClassificationTask
    finetune: dict[str, Any] = Field({}, description="the budget of every run with few labels")
    few_labels: list[Positive] = []
    seeds: Positive = 3


class RegisterConfig(Config):
    """The step `register`: a classifier into the MLflow model registry."""

    model: str = Field(min_length=1)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] = "champion"


def _one_or_range(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


class ServeConfig(Config):
    """The step `serve`: a classifier behind HTTP, on Ray Serve."""

    model: str = Field(min_length=1, description="a folder, a step, or models:/name@alias")
    replicas: Annotated[tuple[Positive, Positive], BeforeValidator(_one_or_range)] = (1, 4)
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    max_batch_tokens: Positive = Field(8192, description="tokens a replica computes at once")
    demo_texts: Annotated[int, Field(ge=0)] = Field(0, description="held-out texts to ask once it is up")
    demo_source: SourceConfig | None = Field(None, description="where the demo texts come from")

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas [{self.replicas[0]}, {self.replicas[1]}] should be [least, most]")
        if self.demo_texts and self.demo_source is None:
            raise ValueError("demo_texts needs a demo_source to take the texts from")
        return self


STEP_CONFIGS: dict[str, type[Config]] = {
    "corpus": CorpusConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "register": RegisterConfig,
    "serve": ServeConfig,
}


class PipelineConfig(Config):
    """A name and its steps, in the order they run; each step's `use` names its verb."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
