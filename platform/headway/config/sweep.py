"""Settings of the step `sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from headway.config.base import INPUT, OPERATIONAL, Config, Positive
from headway.config.finetune import FinetuneConfig
from headway.config.pretrain import PretrainConfig
from headway.config.tasks import AnyTask

SearchSpace = dict[str, str | list[Any]]

COSTS = ("latency_ms", "parameters")
"""What a sweep can measure of each trial's model besides its scores: what it costs to run."""


class SweepConfig(Config):
    """The step `sweep`: fine-tuning, or pretraining, over a search space, on Ray Tune."""

    model: str | None = Field(
        None, min_length=1, description="the encoder to fine-tune", json_schema_extra=INPUT
    )
    task: AnyTask | None = None
    pretrain: dict[str, Any] | None = Field(
        None, description="settings of pretraining that all trials have; instead of model and task"
    )
    finetune: dict[str, Any] = Field({}, description="settings of fine-tuning that all trials have")
    search: SearchSpace = Field(
        {"optimizer.learning_rate": "loguniform(1e-5, 1e-3)", "optimizer.name": ["adamw", "lamb"]},
        min_length=1,
        description="dotted path of a setting → loguniform(a, b), uniform(a, b), choice(a, b, …) or a list",
    )
    algorithm: Literal["random", "grid", "tpe"] = Field(
        "random",
        description="grid tries all combinations of lists; tpe, by Optuna, learns from earlier trials",
    )
    samples: Positive = Field(8, description="number of trials; grid has as many as there are combinations")
    scheduler: Literal["asha", "hyperband", "fifo", "median", "pbt"] = Field(
        "asha", description="hyperband is asha in brackets that begin to stop trials at different times"
    )
    metric: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="measured on the validation rows; if not set, the task's primary one; a list searches a "
        "Pareto front, and may name latency_ms and parameters",
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        0.01,
        description="with several metrics, how far from the best value of the first the winner may be; among "
        "the trials on the Pareto front within it, the best by the second wins",
    )
    concurrency: Positive | None = Field(
        None,
        description="trials at once; if not set, as many as the cluster has cores or GPUs for",
        json_schema_extra=OPERATIONAL,
    )
    cpus_per_trial: Positive | None = Field(
        None,
        description="for all workers of a trial together; if not set, cores are divided evenly",
        json_schema_extra=OPERATIONAL,
    )
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = Field(
        None,
        description="for all workers of a trial together; may be a fraction",
        json_schema_extra=OPERATIONAL,
    )
    reports: Positive = Field(
        6,
        description="rounds of a trial; each ends with an evaluation, after which a scheduler may stop it "
        "(asha and hyperband do so after rounds 1, 3, 9, …, and evaluate only then and at the end)",
    )
    test: bool = Field(True, description="score the winner on the held-out rows")
    seed: Annotated[int, Field(ge=0)] = 0

    def nested_settings(self) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
        """See `Config`."""
        if self.pretrain is not None:
            yield "pretrain", PretrainConfig, self.pretrain
        else:
            yield "finetune", FinetuneConfig, {"model": self.model, "task": self.task} | self.finetune

    @model_validator(mode="after")
    def _one_kind_of_training(self) -> SweepConfig:
        if (self.pretrain is None) == (self.model is None or self.task is None):
            raise ValueError("give model and task to fine-tune, or pretrain, not both")
        if self.pretrain is not None and (self.model is not None or self.task is not None or self.finetune):
            raise ValueError("a sweep over pretrain takes no model, task or finetune")
        return self

    @model_validator(mode="after")
    def _scheduler_fits_metrics(self) -> SweepConfig:
        if isinstance(self.metric, list) and len(self.metric) > 1 and self.scheduler != "fifo":
            raise ValueError(f"scheduler {self.scheduler} judges by one metric; with several, set fifo")
        return self
