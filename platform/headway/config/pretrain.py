"""Settings of the step `pretrain`: the encoder's shape, what is masked, phases."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from headway.config.base import INPUT, Config, Fraction, Positive
from headway.config.compression.distill import DistillConfig
from headway.config.corpora.mixture import AnyCorpus, MixtureConfig, Weight
from headway.config.corpora.recipes import Recipe, expand_recipe
from headway.config.mistakes import check_measure, suggest
from headway.config.training import TrainingConfig

Preset = Literal[
    "bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large", "modernbert-base"
]


class ModelConfig(Config):
    """The shape of an encoder trained from scratch: a preset, and what differs from it."""

    preset: Preset = "bert-base"
    num_hidden_layers: Positive | None = None
    hidden_size: Positive | None = None
    num_attention_heads: Positive | None = None
    dropout: Fraction = 0.1
    # On a CPU, scaled dot-product attention has no fast kernel with dropout, and encoders train as well
    # without it (Geiping and Goldstein 2022, "Cramming", section 4.3).
    attention_dropout: Fraction = 0.0

    def shape_overrides(self) -> dict[str, int]:
        """The sizes that are set explicitly."""
        names = {"num_hidden_layers", "hidden_size", "num_attention_heads"}
        return self.model_dump(include=names, exclude_none=True)


class MaskingConfig(Config):
    """Masked language modelling: 80 % [MASK], 10 % a random token, 10 % unchanged (Devlin et al. 2018)."""

    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_words: bool = False
    static: bool = Field(default=False, description="use the same masks in every epoch, instead of new ones")


class PhaseConfig(Config):
    """A part of pretraining with settings of its own: BERT's first 90 % of steps have rows of 128 tokens."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="of all steps")
    max_length: Annotated[int, Field(ge=8, le=8192)] | None = Field(
        default=None, description="tokens in a sequence at most; if not set, the corpus' length"
    )
    batch_size: Positive | None = Field(default=None, description="if not set, that of the run")
    masking_rate: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="if not set, that of `masking`"
    )
    learning_rate_scale: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="factor on what the schedule says"
    )
    sources: dict[str, Weight] | None = Field(
        default=None,
        description="of a mixture, name → weight in this phase; sources left out give it no rows; if not "
        "set, the mixture's weights",
    )


def _one_or_several(objective: Any) -> Any:
    return [objective] if isinstance(objective, str) else objective


class PretrainConfig(TrainingConfig):
    """The step `pretrain`."""

    recipe: Recipe | None = Field(
        None,
        description="settings that a model was published with, in place of those that are not set: "
        "`modernbert` masks 30 %, warms up, stays, and decays in a last phase, which is for better data",
    )
    corpus: AnyCorpus = Field(
        description="the folder of a prepared corpus, the settings to prepare one, or a mixture of several",
        json_schema_extra=INPUT,
    )
    model: str | ModelConfig = Field(
        ModelConfig(), description="a shape, or a folder to continue from", json_schema_extra=INPUT
    )
    objective: Annotated[
        list[Literal["mlm", "nsp", "sop", "contrastive"]], BeforeValidator(_one_or_several)
    ] = Field(["mlm", "nsp"])
    masking: MaskingConfig = MaskingConfig()
    phases: list[PhaseConfig] = Field(
        [], description="trained one after the other; if empty, one phase at the corpus' length"
    )
    new_weights_first: Fraction = Field(
        0.1,
        description="fraction of the steps that train only weights missing from the model's folder",
    )
    distill: DistillConfig | None = Field(None, description="also learn from a teacher's scores of words")
    validation_rows: Positive = Field(512, description="number of held-out rows for the validation loss")

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, settings: Any) -> Any:
        return expand_recipe(settings)

    @model_validator(mode="after")
    def _sources_exist(self) -> PretrainConfig:
        known = self.corpus.sources if isinstance(self.corpus, MixtureConfig) else None
        if known is not None and self.steps is None:
            raise ValueError("a mixture of corpora has no epochs: give steps")
        if known is not None and self.batch_tokens is not None:
            raise ValueError("batch_tokens does not go with a mixture of corpora; batch_size does")
        for number, phase in enumerate(self.phases):
            where = f"phases.{number}.sources"
            if phase.sources is None or isinstance(self.corpus, str):
                continue
            if known is None:
                raise ValueError(f"{where}: corpus is no mixture; give corpus.sources")
            for name in phase.sources:
                if name not in known:
                    raise ValueError(f"{where}.{name}: there is no such source{suggest(name, known)}")
            if not any(phase.sources.values()):
                raise ValueError(f"{where}: no source has a weight above 0")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.objective not in (["mlm"], ["mlm", "nsp"], ["mlm", "sop"], ["mlm", "contrastive"]):
            raise ValueError(
                f"objective {self.objective} should be [mlm], [mlm, nsp], [mlm, sop] or [mlm, contrastive]"
            )
        total = sum(phase.fraction for phase in self.phases)
        if self.phases and abs(total - 1.0) > 1e-6:
            raise ValueError(f"the fractions of the phases add up to {total:g}; they should add up to 1")
        if self.batch_tokens is not None and any(phase.batch_size for phase in self.phases):
            raise ValueError("give batch_tokens or the phases' batch_size, not both")
        for number, phase in enumerate(self.phases):
            if phase.batch_size is not None and phase.batch_size < self.parts:
                raise ValueError(
                    f"phases.{number}.batch_size {phase.batch_size} is less than "
                    f"workers x gradient_accumulation, {self.parts}"
                )
        if self.distill is not None and "contrastive" in self.objective:
            raise ValueError(
                "distill does not go with objective contrastive; [mlm], [mlm, nsp], [mlm, sop] do"
            )
        if self.distill is not None and self.parallel.splits_model:
            raise ValueError("distill does not go with parallel.shard, tensor and pipeline; workers do")
        check_measure("best_by", self.best_by, self.measures)
        return self

    def first_steps(self, total_steps: int) -> list[int]:
        """The step at which each phase of a run of so many steps begins."""
        starts = accumulate((phase.fraction for phase in self.phases[:-1]), initial=0.0)
        return [round(start * total_steps) for start in starts]

    def learning_rate_scales(self, total_steps: int) -> list[tuple[int, float]]:
        """See `TrainingConfig`."""
        scales = [phase.learning_rate_scale for phase in self.phases]
        return list(zip(self.first_steps(total_steps), scales, strict=False))

    @property
    def measures(self) -> list[str]:
        """The names of what is measured on validation rows."""
        return ["loss", *(f"{name}_{part}" for name in self.objective for part in ("loss", "accuracy"))]
