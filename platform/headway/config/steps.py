"""Every setting a user can write, typed. Reading YAML and overrides lives in `loading`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from headway.config.base import Config, Fraction, Positive, SourceConfig
from headway.config.serve import ServeConfig
from headway.config.tasks import AnyTask
from headway.config.training import OptimizerConfig, TrainingConfig

Preset = Literal[
    "bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large", "modernbert-base"
]


class CorpusConfig(SourceConfig):
    """The step `corpus`: text → tokenizer → token store."""

    vocab_size: Annotated[int, Field(ge=64, le=1_000_000)] = 30_000
    lowercase: bool = True
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    tokenizer: Path | None = Field(None, description="folder of a tokenizer to use instead of training one")
    extend_tokenizer: Annotated[int, Field(ge=0)] = Field(
        0, description="so many of the corpus' words that `tokenizer` cuts up are added to it whole"
    )

    @model_validator(mode="after")
    def _extends_something(self) -> CorpusConfig:
        if self.extend_tokenizer and self.tokenizer is None:
            raise ValueError("extend_tokenizer needs a tokenizer to extend")
        return self


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
    static: bool = Field(default=False, description="the same masks in every epoch, instead of new ones")


class PhaseConfig(Config):
    """A part of pretraining with a length of its own: BERT's first 90 % at 128 tokens, the rest at 512."""

    max_length: Annotated[int, Field(ge=8, le=8192)]
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="of all steps")
    batch_size: Positive | None = Field(default=None, description="that of the run when not set")


class PretrainConfig(TrainingConfig):
    """The step `pretrain`."""

    corpus: str | CorpusConfig = Field(description="a prepared corpus, or what to prepare one from")
    model: str | ModelConfig = Field(ModelConfig(), description="a shape, or a folder to continue from")
    objective: list[Literal["mlm", "nsp", "sop"]] = Field(["mlm", "nsp"])
    masking: MaskingConfig = MaskingConfig()
    phases: list[PhaseConfig] = Field(
        [], description="one after the other; one, of the corpus' length, if empty"
    )
    validation_rows: Positive = Field(512, description="held-out rows that the validation loss is over")

    @model_validator(mode="after")
    def _masks_words(self) -> PretrainConfig:
        if self.objective not in (["mlm"], ["mlm", "nsp"], ["mlm", "sop"]):
            raise ValueError(f"objective {self.objective} should be [mlm], [mlm, nsp] or [mlm, sop]")
        shares = sum(phase.share for phase in self.phases)
        if self.phases and abs(shares - 1.0) > 1e-6:
            raise ValueError(f"the shares of the phases add up to {shares:g}; they should to 1")
        if self.batch_tokens is not None and any(phase.batch_size for phase in self.phases):
            raise ValueError("give batch_tokens or the phases' batch_size, not both")
        return self


class LoraConfig(Config):
    """Low-rank adaptation (Hu et al. 2021): W + alpha / rank · B A is trained in place of W."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    dropout: Fraction = 0.0
    modules: list[str] = Field(
        [], description="names of the linear layers that are adapted; all of the encoder's when empty"
    )


def _prepared_or_described(task: Any) -> str:
    return "str" if isinstance(task, str) else "dictTask"


class FinetuneConfig(TrainingConfig):
    """The step `finetune`: an encoder, a task, a budget."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    batch_size: Positive = 32
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4)
    model: str = Field(min_length=1, description="a folder, a step, or models:/name@alias")
    task: Annotated[
        Annotated[str, Tag("str")] | Annotated[AnyTask, Tag("dictTask")],
        Discriminator(_prepared_or_described),
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


SearchSpace = dict[str, str | list[Any]]


class SweepConfig(Config):
    """The step `sweep`: fine-tuning, or pretraining, over a search space, on Ray Tune."""

    model: str | None = Field(None, min_length=1, description="what is fine-tuned")
    task: AnyTask | None = None
    pretrain: dict[str, Any] | None = Field(
        None, description="settings of pretraining that every trial shares; in place of model and task"
    )
    finetune: dict[str, Any] = Field({}, description="settings of fine-tuning that every trial shares")
    search: SearchSpace = Field(
        {"optimizer.learning_rate": "loguniform(1e-5, 1e-3)", "optimizer.name": ["adamw", "lamb"]},
        min_length=1,
        description="dotted path of a setting → loguniform(a, b), uniform(a, b), choice(a, b, …) or a list",
    )
    algorithm: Literal["random", "grid", "tpe"] = Field(
        "random", description="grid: all combinations of lists; tpe: Optuna's, learns from earlier trials"
    )
    samples: Positive = Field(8, description="trials; grid has as many as there are combinations")
    scheduler: Literal["asha", "hyperband", "fifo", "median", "pbt"] = Field(
        "asha", description="hyperband: asha in brackets that begin to stop trials at different times"
    )
    metric: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="on the validation rows; the task's own when not set; a list searches a Pareto front, "
        "and may name latency_ms and parameters",
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        0.01,
        description="with several metrics, how far from the best of the first the winner may be: it is the "
        "best of the second on the Pareto front among those",
    )
    concurrency: Positive | None = Field(
        None, description="trials at once; as many as the cluster has cores or GPUs for when not set"
    )
    cpus_per_trial: Positive | None = Field(
        None, description="of all its workers together; shared out evenly when not set"
    )
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="likewise; may be a fraction of one"
    )
    reports: Positive = Field(
        6,
        description="rounds a trial; each ends with an evaluation by which a scheduler can stop it (asha and "
        "hyperband judge after the 1st, 3rd, 9th … and evaluate only there and at the end)",
    )
    test: bool = Field(True, description="score the winner once on the held-out rows")
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_stage(self) -> SweepConfig:
        if (self.pretrain is None) == (self.model is None or self.task is None):
            raise ValueError("give model and task to fine-tune, or pretrain, not both")
        if self.pretrain is not None and (self.model is not None or self.task is not None or self.finetune):
            raise ValueError("a sweep over pretrain takes no model, task or finetune")
        return self

    @model_validator(mode="after")
    def _no_stopping_by_one_metric(self) -> SweepConfig:
        if isinstance(self.metric, list) and len(self.metric) > 1 and self.scheduler != "fifo":
            raise ValueError(f"scheduler {self.scheduler} judges by one metric; with several, set fifo")
        return self


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


class CompressConfig(Config):
    """The step `compress`: a trained encoder made cheaper to run."""

    model: str = Field(min_length=1, description="an encoder with BERT's layers: a folder or a step")
    quantize: Literal["int8"] = Field(
        "int8", description="int8: layers multiply 8-bit integers where a processor serves them"
    )
    texts: SourceConfig = Field(
        description="like those it will be given; some fix the scales, on others the result is measured"
    )
    samples: Positive = Field(128, description="texts for each of the two, if the source has so many")
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a text is cut at")
    min_cosine: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.98, description="mean cosine between its embeddings and the original's below which it is refused"
    )


class RegisterConfig(Config):
    """The step `register`: an encoder into the MLflow model registry."""

    model: str = Field(min_length=1)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] = "champion"


STEP_CONFIGS: dict[str, type[Config]] = {
    "corpus": CorpusConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "compress": CompressConfig,
    "register": RegisterConfig,
    "serve": ServeConfig,
}


class PipelineConfig(Config):
    """A name and its steps, in the order they run; each step's `use` names its verb."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
