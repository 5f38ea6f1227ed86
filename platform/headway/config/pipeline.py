"""The settings of a whole pipeline, and the class of settings that belongs to each verb."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from headway.config.base import Config
from headway.config.compression.export import ExportConfig
from headway.config.compression.prune import PruneConfig
from headway.config.compression.quantize import QuantizeConfig
from headway.config.compression.static import StaticConfig
from headway.config.corpus import CorpusConfig
from headway.config.evaluate import ChooseConfig, EvaluateConfig
from headway.config.finetune import FinetuneConfig
from headway.config.pretrain import PretrainConfig
from headway.config.register import RegisterConfig
from headway.config.serve import ServeConfig
from headway.config.sweep import SweepConfig

STEP_CONFIGS: dict[str, type[Config]] = {
    "corpus": CorpusConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "choose": ChooseConfig,
    "prune": PruneConfig,
    "quantize": QuantizeConfig,
    "static": StaticConfig,
    "export": ExportConfig,
    "register": RegisterConfig,
    "serve": ServeConfig,
}

STEP_OUTPUTS: dict[str, tuple[str, ...]] = {"sweep": ("best",)}
"""What `${step.name}` can name of a verb's results, besides the one that `${step}` stands for."""


class PipelineConfig(Config):
    """A name and steps, in the order in which they run; each step's `use` names its verb."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
