"""Settings of the training loop, the same for pretraining and fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, model_validator

from headway.config.base import OPERATIONAL, Config, Fraction, Positive


class OptimizerConfig(Config):
    """An optimizer by name."""

    name: Literal["adamw", "lamb", "lion", "adafactor", "muon", "schedule_free_adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-6
    layerwise_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="factor from each layer's learning rate to that of the layer below it"
    )


class ScheduleConfig(Config):
    """How the learning rate changes over the run."""

    name: Literal["linear", "cosine", "constant", "wsd", "polynomial"] = "linear"
    warmup: Fraction = Field(default=0.1, description="fraction of all steps")
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.2, description="for wsd, the fraction of the steps after warm-up over which the rate falls"
    )
    power: Annotated[float, Field(gt=0.0)] = Field(default=2.0, description="for polynomial, its degree")


class BatchWarmupConfig(Config):
    """Smaller batches at first: `batch_size` grows from `start` in equal steps."""

    start: Positive
    fraction: Fraction = Field(0.1, gt=0.0, description="of all steps")


class ParallelConfig(Config):
    """How workers divide the work; their number is pipeline x data x shard x tensor."""

    data: Positive | None = Field(default=None, description="copies of the model; if not set, as many as fit")
    shard: Positive = Field(default=1, description="workers that each hold a slice of every weight")
    tensor: Positive = Field(
        default=1, description="workers that divide the heads and neurons of every layer"
    )
    pipeline: Positive = Field(default=1, description="workers that each hold some of the layers")

    @property
    def splits_model(self) -> bool:
        """Whether a worker holds less than the whole model."""
        return self.shard * self.model_parallel_size > 1

    @property
    def model_parallel_size(self) -> int:
        """Workers that compute the same rows together."""
        return self.tensor * self.pipeline

    def mesh_shape(self, workers: int) -> tuple[int, int, int, int]:
        """The number of workers along pipeline, data, shard and tensor.

        Raises:
            ValueError: their product is not the number of workers.
        """
        split = self.shard * self.model_parallel_size
        data = self.data or max(1, workers // split)
        if data * split != workers:
            raise ValueError(
                f"workers {workers} should be parallel.pipeline x data x shard x tensor, "
                f"{self.pipeline} x {data} x {self.shard} x {self.tensor} = {data * split}"
            )
        return self.pipeline, data, self.shard, self.tensor


class TrainingRows(Protocol):
    """What the number of steps depends on in what is trained on."""

    @property
    def rows(self) -> int:
        """Rows in an epoch."""
        ...

    def steps_an_epoch(self, parts: int) -> float:
        """Steps that it takes to see every row once, if each step has `parts` micro-batches."""
        ...


class TrainingConfig(Config):
    """The settings that pretraining and fine-tuning have in common."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    steps: Positive | None = None
    batch_size: Positive = Field(64, description="sequences in an optimizer step, over all workers")
    batch_tokens: Positive | None = Field(
        None,
        description="tokens in an optimizer step, over all workers, instead of `batch_size` sequences; each "
        "micro-batch has the same number of positions, the last few of them padding",
    )
    batch_warmup: BatchWarmupConfig | None = None
    gradient_accumulation: Positive = Field(
        1, description="micro-batches in an optimizer step, on each worker", json_schema_extra=OPERATIONAL
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    new_weights_first: Fraction = Field(
        0.0,
        description="fraction of the steps that train only weights missing from the model's folder",
    )
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto is bf16 if it is fast, otherwise fp16 on a GPU that is fast at it, or fp32"
    )
    tf32: bool = Field(
        default=False,
        description="on a GPU, multiply float32 matrices in TF32: faster, with 10 bits of fraction, not 23",
    )
    compile: bool | Literal["trunk"] | None = Field(
        default=None,
        description="true: torch.compile each layer; trunk: all layers as one graph, which takes longer to "
        "start and runs a little faster; if not set, layers on a GPU in runs of 300 steps or more",
        json_schema_extra=OPERATIONAL,
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass to save memory",
        json_schema_extra=OPERATIONAL,
    )
    seed: Annotated[int, Field(ge=0)] = 0
    loader_processes: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="processes that make each worker's batches, which are the same for any number; "
        "if not set, 0 on a CPU and up to 4 on a GPU",
        json_schema_extra=OPERATIONAL,
    )
    workers: Annotated[int, Field(ge=0)] | tuple[Positive, Positive] = Field(
        0,
        description="number of Ray Train workers, or [min, max]; 0 trains without Ray",
        json_schema_extra=OPERATIONAL,
    )
    parallel: ParallelConfig = Field(ParallelConfig(), json_schema_extra=OPERATIONAL)
    log_every: Positive = Field(
        10, description="steps between reports of the training loss", json_schema_extra=OPERATIONAL
    )
    evaluate_every: Positive | None = Field(
        None, description="steps between evaluations; if not set, a tenth of the run"
    )
    evaluate_at: tuple[Positive, ...] | None = Field(
        None, description="steps to evaluate after, besides the last; instead of evaluate_every"
    )
    checkpoint_every: Positive | None = Field(
        None,
        description="steps between saved states; if not set, a fifth of the run",
        json_schema_extra=OPERATIONAL,
    )
    checkpoint_folder: str | None = Field(
        None,
        min_length=1,
        description="where states go: a folder or s3://…; if not set, the run's folder",
        json_schema_extra=OPERATIONAL,
    )
    keep_checkpoints: Positive = Field(
        2, description="how many of the newest states are kept", json_schema_extra=OPERATIONAL
    )
    keep_best_checkpoints: Annotated[int, Field(ge=0)] = Field(
        0,
        description="how many states with the lowest validation loss are also kept",
        json_schema_extra=OPERATIONAL,
    )
    log_rows: bool = Field(
        False, description="write the ids of every step's rows to rows/: proof of what was seen"
    )
    system_metrics_interval_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="seconds between measurements of each worker's cores, memory and GPU, which MLflow shows "
        "as system metrics; if not set, none are made",
        json_schema_extra=OPERATIONAL,
    )
    best_by: str | None = Field(
        None,
        description="measure on the validation rows whose best model is kept; if not set, the last model is",
    )
    early_stopping_patience: Positive | None = Field(
        None,
        description="evaluations without a better `best_by` (or `loss`, if not set) after which the run ends",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.evaluate_every is not None and self.evaluate_at is not None:
            raise ValueError("give evaluate_every or evaluate_at, not both")
        parts = self.parts
        if self.batch_tokens is not None:
            return self._in_tokens(parts)
        smallest = self.batch_warmup.start if self.batch_warmup else self.batch_size
        if smallest < parts:
            name = "batch_warmup.start" if self.batch_warmup else "batch_size"
            raise ValueError(f"{name} {smallest} is less than workers x gradient_accumulation, {parts}")
        if smallest > self.batch_size:
            raise ValueError(f"batch_warmup.start {smallest} is more than batch_size {self.batch_size}")
        return self

    def _in_tokens(self, parts: int) -> TrainingConfig:
        assert self.batch_tokens is not None
        if self.batch_warmup is not None:
            raise ValueError("give batch_tokens or batch_warmup, not both")
        if self.batch_tokens % parts:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} should be a multiple of "
                f"workers x gradient_accumulation, {parts}"
            )
        return self

    @model_validator(mode="after")
    def _workers_in_order(self) -> TrainingConfig:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers [{self.workers[0]}, {self.workers[1]}] should be [min, max]")
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> TrainingConfig:
        if self.parallel.splits_model or self.parallel.data is not None:
            if isinstance(self.workers, tuple):
                raise ValueError("parallel needs a fixed number of workers")
            self.parallel.mesh_shape(self.workers)
        # The other optimizers need whole matrices, or the norms of whole tensors.
        if self.parallel.splits_model and self.optimizer.name != "adamw":
            raise ValueError(
                f"parallel.shard, tensor and pipeline need optimizer.name adamw, not {self.optimizer.name!r}"
            )
        if self.parallel.splits_model and self.precision == "fp16":
            raise ValueError("parallel.shard, tensor and pipeline need precision bf16 or fp32, not 'fp16'")
        if self.gradient_accumulation < self.parallel.pipeline:
            raise ValueError(
                f"parallel.pipeline {self.parallel.pipeline} needs as many micro-batches; "
                f"gradient_accumulation {self.gradient_accumulation} is less"
            )
        return self

    @property
    def min_workers(self) -> int:
        """Workers in the smallest group that trains; 1 without Ray."""
        return self.workers[0] if isinstance(self.workers, tuple) else max(1, self.workers)

    @property
    def max_workers(self) -> int:
        """Workers in the largest group that trains; 1 without Ray."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)

    @property
    def max_data_size(self) -> int:
        """Parts that each batch is divided into among the largest group."""
        return max(1, self.max_workers // self.parallel.model_parallel_size)

    @property
    def parts(self) -> int:
        """Micro-batches that each step's batch is dealt into, over all workers of the largest group."""
        return self.max_data_size * self.gradient_accumulation

    def result_settings(self) -> dict[str, Any]:
        """See `Config`.

        Which rows a step has does not depend on the workers, except with `batch_tokens`: rows are packed into
        micro-batches, whose size does. Their number then belongs to the result.
        """
        settings = super().result_settings()
        return settings if self.batch_tokens is None else settings | {"parts": self.parts}

    def total_steps(self, rows: int | TrainingRows) -> int:
        """Optimizer steps of the whole run over these rows, or this many; one epoch if nothing is set.

        Raises:
            ConfigError: a row does not fit into a micro-batch of `batch_tokens`.
        """
        if self.steps is not None:
            return self.steps
        epochs = self.epochs or 1.0
        if self.batch_tokens is not None:
            if isinstance(rows, int):
                raise TypeError("how many steps batch_tokens makes depends on the rows' lengths")
            return max(1, round(epochs * rows.steps_an_epoch(self.parts)))
        number = rows if isinstance(rows, int) else rows.rows
        return max(1, round(epochs * number / self._mean_batch_size))

    def learning_rate_scales(self, total_steps: int) -> list[tuple[int, float]]:
        """(first step, factor on the schedule from there on), ascending; none for the schedule as it is."""
        return []

    @property
    def _mean_batch_size(self) -> float:
        """Rows a step, over a whole run: while batches warm up they are smaller."""
        if self.batch_warmup is None:
            return self.batch_size
        return self.batch_size - self.batch_warmup.fraction * (self.batch_size - self.batch_warmup.start) / 2
