"""Settings of the training loop, the same for pretraining and fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from headway.config.base import Config, Fraction, Positive


class OptimizerConfig(Config):
    """An optimizer by name."""

    name: Literal["adamw", "lamb", "lion", "adafactor", "muon", "schedule_free_adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0.0)] = 1e-6
    layerwise_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="each layer's learning rate as a share of that of the layer above it"
    )


class ScheduleConfig(Config):
    """The course of the learning rate."""

    name: Literal["linear", "cosine", "constant", "wsd", "polynomial"] = "linear"
    warmup: Fraction = Field(default=0.1, description="share of all steps")
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.2, description="wsd: share of the steps after warm-up over which the rate falls"
    )
    power: Annotated[float, Field(gt=0.0)] = Field(default=2.0, description="polynomial: its degree")


class BatchWarmupConfig(Config):
    """Smaller batches at first: `batch_size` grows from `start` in equal steps."""

    start: Positive
    share: Fraction = Field(0.1, gt=0.0, description="share of all steps")


class ParallelConfig(Config):
    """How workers share the work: their number is pipeline x data x shard x tensor."""

    data: Positive | None = Field(
        default=None, description="copies of the model; as many as fit when not set"
    )
    shard: Positive = Field(default=1, description="workers that each hold a slice of every weight")
    tensor: Positive = Field(default=1, description="workers that share the heads and neurons of every layer")
    pipeline: Positive = Field(default=1, description="workers that each hold some of the layers")

    @property
    def splits_model(self) -> bool:
        """Whether a worker holds less than the whole model."""
        return self.shard * self.workers_a_share > 1

    @property
    def workers_a_share(self) -> int:
        """Workers that compute the same share of the batch together."""
        return self.tensor * self.pipeline

    def mesh_shape(self, workers: int) -> tuple[int, int, int, int]:
        """Workers along pipeline, data, shard and tensor.

        Raises:
            ValueError: the number of workers does not fit.
        """
        split = self.shard * self.workers_a_share
        data = self.data or max(1, workers // split)
        if data * split != workers:
            raise ValueError(
                f"workers {workers} should be parallel.pipeline x data x shard x tensor, "
                f"{self.pipeline} x {data} x {self.shard} x {self.tensor} = {data * split}"
            )
        return self.pipeline, data, self.shard, self.tensor


class TrainingRows(Protocol):
    """What is trained on, as far as the number of steps depends on it."""

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        ...

    def steps_an_epoch(self, parts: int) -> float:
        """Steps it takes to see every row once, if each is dealt into `parts`."""
        ...


class TrainingConfig(Config):
    """What pretraining and fine-tuning share."""

    epochs: Annotated[float, Field(gt=0.0)] | None = None
    steps: Positive | None = None
    batch_size: Positive = Field(64, description="sequences an optimizer step, over all workers")
    batch_tokens: Positive | None = Field(
        None,
        description="positions of an optimizer step, over all workers, in place of `batch_size` sequences: "
        "each micro-batch has the same number, the last few of them padding",
    )
    batch_warmup: BatchWarmupConfig | None = None
    gradient_accumulation: Positive = Field(1, description="micro-batches an optimizer step, on each worker")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    new_weights_first: Fraction = Field(
        0.0, description="share of the steps that train only weights that the model's folder lacked, a head"
    )
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where it is fast, else fp16 on a GPU that is fast at it"
    )
    tf32: bool = Field(
        default=False,
        description="on a GPU, multiply float32 matrices in TF32: faster, with 10 bits of a fraction, not 23",
    )
    compile: bool | Literal["trunk"] | None = Field(
        default=None,
        description="torch.compile each layer, or the trunk as one graph, slower to start and a little "
        "faster; when not set, layers on a GPU in runs of 300 steps or more",
    )
    activation_checkpointing: bool = Field(default=False, description="compute activations twice, keep few")
    seed: Annotated[int, Field(ge=0)] = 0
    loader_processes: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="processes that make each worker's batches, which are the same for any number; "
        "0 on a CPU and up to 4 on a GPU when not set",
    )
    workers: Annotated[int, Field(ge=0)] | tuple[Positive, Positive] = Field(
        0, description="Ray Train workers, or [least, most] of them; 0 trains without Ray"
    )
    parallel: ParallelConfig = ParallelConfig()
    log_every: Positive = Field(10, description="steps between reports of the training loss")
    evaluate_every: Positive | None = Field(None, description="steps; a tenth of the run when not set")
    evaluate_at: tuple[Positive, ...] | None = Field(
        None, description="the steps to evaluate after, beside the last; instead of evaluate_every"
    )
    checkpoint_every: Positive | None = Field(None, description="steps; a fifth of the run when not set")
    checkpoint_folder: str | None = Field(
        None, min_length=1, description="for states: a folder or s3://…; with the run when not set"
    )
    keep_checkpoints: Positive = Field(2, description="newest states that are kept")
    keep_best_checkpoints: Annotated[int, Field(ge=0)] = Field(
        0, description="states with the lowest validation loss that are kept besides"
    )
    log_rows: bool = Field(
        False, description="keep the row ids of every step in rows/: proof of what was seen"
    )
    best_by: str | None = Field(
        None, description="measure on the validation rows whose best model is kept; the last when not set"
    )
    early_stopping_patience: Positive | None = Field(
        None, description="evaluations without a better `best_by` (`loss` when not set) that end the run"
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.evaluate_every is not None and self.evaluate_at is not None:
            raise ValueError("give evaluate_every or evaluate_at, not both")
        least = self.most_shares * self.gradient_accumulation
        if self.batch_tokens is not None:
            return self._in_tokens(least)
        smallest = self.batch_warmup.start if self.batch_warmup else self.batch_size
        if smallest < least:
            name = "batch_warmup.start" if self.batch_warmup else "batch_size"
            raise ValueError(f"{name} {smallest} is less than workers x gradient_accumulation, {least}")
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
            raise ValueError(f"workers [{self.workers[0]}, {self.workers[1]}] should be [least, most]")
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> TrainingConfig:
        if self.parallel.splits_model or self.parallel.data is not None:
            if isinstance(self.workers, tuple):
                raise ValueError("parallel needs a fixed number of workers")
            self.parallel.mesh_shape(self.workers)
        # The others reckon with whole matrices, or with norms of whole tensors.
        if self.parallel.splits_model and self.optimizer.name != "adamw":
            raise ValueError(
                f"parallel.shard, tensor and pipeline need optimizer.name adamw, not {self.optimizer.name!r}"
            )
        if self.parallel.splits_model and self.precision == "fp16":
            raise ValueError("parallel.shard, tensor and pipeline need precision bf16 or fp32, not 'fp16'")
        if self.gradient_accumulation < self.parallel.pipeline:
            raise ValueError(
                f"parallel.pipeline {self.parallel.pipeline} needs as many micro-batches, "
                f"gradient_accumulation {self.gradient_accumulation} is less"
            )
        return self

    @property
    def most_workers(self) -> int:
        """The largest group that trains; 1 without Ray."""
        return self.workers[1] if isinstance(self.workers, tuple) else max(1, self.workers)

    @property
    def most_shares(self) -> int:
        """Shares of each batch in the largest group."""
        return max(1, self.most_workers // self.parallel.workers_a_share)

    def total_steps(self, rows: int | TrainingRows) -> int:
        """Optimizer steps of the whole run over some rows, or so many; one epoch if nothing is set.

        Raises:
            ConfigError: a row does not fit into a micro-batch of `batch_tokens`.
        """
        if self.steps is not None:
            return self.steps
        epochs = self.epochs or 1.0
        if self.batch_tokens is not None:
            if isinstance(rows, int):
                raise TypeError("how many steps batch_tokens makes depends on the rows' lengths")
            return max(1, round(epochs * rows.steps_an_epoch(self.most_shares * self.gradient_accumulation)))
        number = rows if isinstance(rows, int) else rows.rows
        return max(1, round(epochs * number / self.batch_size))
