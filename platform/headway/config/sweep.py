"""Settings of the step `sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from headway.config.base import INPUT, OPERATIONAL, Config, Positive
from headway.config.finetune import FinetuneConfig
from headway.config.pretrain import PretrainConfig
from headway.config.tasks import AnyTask
from headway.config.training import TrainingConfig


class ConditionalSearch(Config):
    """The search of a setting that matters only if others have certain values."""

    values: str | Annotated[list[Any], Field(min_length=1)] = Field(
        description="what the setting is searched over, as it is written without conditions"
    )
    when: dict[str, Any] = Field(
        min_length=1,
        description="dotted path of another searched setting → its value, or a list of values, with which "
        "this one is searched; in other trials it keeps its usual value",
    )


SearchSpace = dict[str, str | list[Any] | ConditionalSearch]


class SuccessiveHalving(Config):
    """What `asha` and `hyperband` share: of the trials that reach a rung, only the best continue."""

    grace_period: Positive = Field(1, description="rounds until the first rung, before which no trial stops")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3,
        description="one in this many trials continues after a rung, and the next rung is this many times as "
        "far (Li et al. 2020)",
    )


class AshaConfig(SuccessiveHalving):
    """The scheduler `asha`: asynchronous successive halving."""

    name: Literal["asha"] = Field("asha", description="which scheduler")


class HyperbandConfig(SuccessiveHalving):
    """The scheduler `hyperband`: asha in brackets, each of which begins to stop trials a rung later."""

    name: Literal["hyperband"] = Field("hyperband", description="which scheduler")
    brackets: Positive = Field(
        2, description="number of brackets; the later one begins, the fewer trials it has"
    )


class FifoConfig(Config):
    """The scheduler `fifo`, which stops no trial."""

    name: Literal["fifo"] = Field("fifo", description="which scheduler")


class MedianConfig(Config):
    """The scheduler `median`: stops a trial that was never as good as the median of the others' means."""

    name: Literal["median"] = Field("median", description="which scheduler")
    grace_period: Positive = Field(2, description="rounds before which no trial stops, and that do not count")
    min_samples_required: Positive = Field(3, description="trials that a median needs")


class PbtConfig(Config):
    """The scheduler `pbt`: bad trials continue from good ones, with changed settings."""

    name: Literal["pbt"] = Field("pbt", description="which scheduler")
    perturbation_interval: Positive = Field(1, description="rounds between two changes of a trial")
    quantile_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        0.25, description="fraction of the trials that continue from others, and of those they continue from"
    )
    resample_probability: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.25, description="how often a setting is drawn again, rather than changed a little"
    )
    perturbation_factors: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = Field(
        (1.2, 0.8),
        description="one of them multiplies a number that is changed, within its range; of a list, the value "
        "before or after is taken",
    )


def _expanded(scheduler: Any) -> Any:
    """`asha` stands for `{name: asha}`."""
    return {"name": scheduler} if isinstance(scheduler, str) else scheduler


def _name(scheduler: Any) -> str:
    name = scheduler.get("name", "asha") if isinstance(scheduler, dict) else getattr(scheduler, "name", None)
    return str(name)


AnyScheduler = Annotated[
    Annotated[AshaConfig, Tag("asha")]
    | Annotated[HyperbandConfig, Tag("hyperband")]
    | Annotated[FifoConfig, Tag("fifo")]
    | Annotated[MedianConfig, Tag("median")]
    | Annotated[PbtConfig, Tag("pbt")],
    Discriminator(
        _name,
        custom_error_type="unknown_name",
        custom_error_message="Input should be 'asha', 'hyperband', 'fifo', 'median' or 'pbt'",
    ),
    BeforeValidator(_expanded),
]
"""Any scheduler's settings; its `name` says which."""

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
        description="dotted path of a setting → uniform(a, b), loguniform(a, b), randint(a, b), "
        "lograndint(a, b), these in multiples of q (quniform(a, b, q) and so on), choice(a, b, …), a list, "
        "or one of them with conditions; as in Ray Tune, randint and lograndint leave b out; a setting that "
        "takes whole numbers gets only those",
    )
    first_points: list[dict[str, Any]] = Field(
        [],
        description="values to try first, each a mapping from dotted paths; what a point leaves out is "
        "sampled; grid begins with all combinations that have the point's values",
    )
    algorithm: Literal["random", "grid", "tpe"] = Field(
        "random",
        description="grid tries all combinations of lists; tpe, by Optuna, learns from earlier trials",
    )
    samples: Positive = Field(8, description="number of trials; grid has as many as there are combinations")
    scheduler: AnyScheduler = Field(
        AshaConfig(name="asha"),
        description="what stops trials early: `asha`, `hyperband`, `fifo` (nothing), `median`, `pbt`, or a "
        "mapping of its name and settings, such as `{name: asha, grace_period: 2}`",
    )
    time_budget_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="seconds after which no trial begins, and all stop as soon as one has trained to its "
        "end, until when the best continues; the time between a driver's death and the next does not count",
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
        "(asha and hyperband do so only at their rungs, after rounds 1, 3, 9, …, and evaluate only then and "
        "at the end)",
    )
    test: bool = Field(True, description="score the winner on the held-out rows")
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def trained_class(self) -> type[TrainingConfig]:
        """The class of the settings that are searched."""
        return FinetuneConfig if self.pretrain is None else PretrainConfig

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
        name = self.scheduler.name
        if isinstance(self.metric, list) and len(self.metric) > 1 and name != "fifo":
            raise ValueError(f"scheduler {name} judges by one metric; with several, set fifo")
        return self
