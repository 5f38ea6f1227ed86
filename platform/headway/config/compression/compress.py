"""Settings of the step `compress`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from headway.config.base import INPUT, OPERATIONAL, Config, Count, Positive
from headway.config.finetune import FinetuneConfig, folder_or_settings
from headway.config.sweep import SearchSpace
from headway.config.tasks import AnyTask


def _without(unit: str, factor: float) -> Any:
    """Reads a number that may be written with its unit."""

    def read(value: Any) -> Any:
        if not isinstance(value, str) or not value.endswith(unit):
            return value
        try:
            return float(value.removesuffix(unit)) * factor
        except ValueError:
            return value  # for pydantic to refuse

    return BeforeValidator(read)


Times = Annotated[float, Field(gt=0.0), _without("x", 1.0)]
"""How many times as much as of the original: `0.4x`, or 0.4."""

Percent = Annotated[float, Field(ge=0.0, lt=1.0), _without("%", 0.01)]
"""A fraction: `1%`, or 0.01."""


class TargetConfig(Config):
    """What a smaller model should reach, beside the original in fp32 on the same machine."""

    latency: Times | None = Field(
        None, description="time for one text: at most so many times the original's, such as `0.4x`"
    )
    throughput: Times | None = Field(
        None, description="texts a second, 32 at a time: at least so many times the original's, such as `3x`"
    )
    size: Times | None = Field(
        None, description="bytes of its folder: at most so many times the original's, such as `0.25x`"
    )
    max_quality_loss: Percent = Field(
        0.01,
        description="by how much the task's primary score may be worse, as a fraction of the original's, "
        "such as `1%`",
    )

    @model_validator(mode="after")
    def _something_gets_smaller(self) -> TargetConfig:
        if not self.ratios:
            raise ValueError("give latency, throughput or size: what should become smaller or faster")
        return self

    @property
    def ratios(self) -> dict[str, float]:
        """What is to be reached besides the quality, by its name."""
        every = {"latency": self.latency, "throughput": self.throughput, "size": self.size}
        return {name: ratio for name, ratio in every.items() if ratio is not None}


class CandidateConfig(Config):
    """A smaller model to try: what stays of the original, and how it is trained afterwards."""

    layers: Positive | None = Field(None, description="how many stay; all if not set")
    heads: Positive | None = Field(None, description="of each layer; all if not set")
    neurons: Positive | None = Field(None, description="of each feed-forward layer; all if not set")
    vocabulary: Positive | None = Field(None, description="tokens; all if not set")
    finetune: FinetuneConfig


class CompressConfig(Config):
    """The step `compress`: searches for the smallest and fastest form of a model that is good enough.

    Candidates are pruned, learn again from the original, and are rounded to 8-bit integers if that is faster.
    """

    model: str = Field(
        min_length=1,
        description="fine-tuned on the task: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    task: Annotated[
        Annotated[str, Tag("folder")] | Annotated[AnyTask, Tag("settings")],
        Discriminator(folder_or_settings),
    ] = Field(
        description="what the model was fine-tuned on: the folder of a prepared task, or its settings",
        json_schema_extra=INPUT,
    )
    target: TargetConfig = Field(description="what is to be reached, at what loss of quality")
    search: SearchSpace = Field(
        {},
        description="`layers`, `heads`, `neurons`, `vocabulary`, or a path such as `finetune.epochs` → "
        "values, as in `sweep`; if empty, fractions of the layers and neurons and, if a size is "
        "wanted, of the tokens that the task uses",
    )
    finetune: dict[str, Any] = Field(
        {"epochs": 3, "optimizer": {"learning_rate": 2e-4}},
        description="settings of the fine-tuning after a cut; the original is the teacher of `distill`, "
        "which is on unless it is null",
    )
    precisions: Annotated[tuple[Literal["float", "int8"], ...], Field(min_length=1)] = Field(
        ("float", "int8"),
        description="float: as a server computes without being told, in bf16 or fp16 if that is fast; int8: "
        "where layers can multiply integers; each candidate keeps what is better by its measured speed",
    )
    weights: Literal["float32", "float16", "int8", "int4"] = Field(
        "float16",
        description="how the result's weights are kept; int8 and int4 are packed, as by `quantize`, and only "
        "Headway reads them",
    )
    samples: Positive = Field(12, description="candidates, the original as it is among them")
    time_budget_s: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="seconds after which no candidate begins, and all stop as soon as one is measured; the "
        "time between a driver's death and the next does not count",
    )
    calibration_rows: Positive = Field(
        256, description="training rows that importance, and scales for int8, are measured on"
    )
    concurrency: Positive | None = Field(
        1,
        description="candidates at once, which share the cores and disturb each other's measurements; those "
        "on the Pareto front are measured again at the end, alone",
        json_schema_extra=OPERATIONAL,
    )
    cpus_per_trial: Positive | None = Field(
        None,
        description="cores of each candidate; if not set, they are divided evenly",
        json_schema_extra=OPERATIONAL,
    )
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="of each candidate; may be a fraction", json_schema_extra=OPERATIONAL
    )
    seed: Count = 0

    @property
    def weight_bits(self) -> int | None:
        """Bits of a packed weight; None if weights stay floats."""
        return {"int8": 8, "int4": 4}.get(self.weights)

    @property
    def shared(self) -> dict[str, Any]:
        """The settings of fine-tuning that all candidates have."""
        teacher = {"teacher": self.model}
        given = self.finetune.get("distill", {})
        distill = given if not isinstance(given, dict) else given | teacher
        return {"model": self.model, "task": self.task} | self.finetune | {"distill": distill}

    def nested_settings(self) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
        """See `Config`."""
        yield "finetune", FinetuneConfig, self.shared

    @model_validator(mode="after")
    def _only_what_candidates_differ_in(self) -> CompressConfig:
        for path in self.search:
            name = path.partition(".")[0]
            if name not in CandidateConfig.model_fields or path == "finetune":
                raise ValueError(
                    f"search.{path} is not allowed; allowed: layers, heads, neurons, vocabulary, finetune.…"
                )
        for name in ("seeds", "folds", "workers", "layers", "lora", "random_weights"):
            if name in self.finetune:
                raise ValueError(f"finetune.{name} does not go with compress, whose candidates are cut first")
        distill = self.finetune.get("distill") or {}
        if "vocabulary" in self.search and any(distill.get(name) for name in ("hidden", "relations")):
            raise ValueError(
                "search.vocabulary does not go with finetune.distill.hidden and relations, which compare the "
                "states of the same tokens; logits do"
            )
        return self
