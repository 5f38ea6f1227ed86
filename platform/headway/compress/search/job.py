"""What a search makes its candidates of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.config.compression.compress import CandidateConfig, CompressConfig
from headway.config.finetune import FinetuneConfig
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.pruning.cut import Sizes
from headway.runs.finetuning import FinetuningJob
from headway.sweeps.search.space import trial_settings
from headway.tasks.preparation import retokenized
from headway.tasks.task import Task


@dataclass(frozen=True)
class SearchJob:
    """What candidates are made of; small, since it is sent to every trial.

    Attributes:
        config: of the step.
        base: fine-tuning on the task as the original reads it, with the original as the teacher.
        sizes: of the original.
        layer_order: all of its layers, in the order in which they are dropped.
        score: the original's primary one on the validation rows, in fp32.
        stores: folder of prepared tasks.
    """

    config: CompressConfig
    base: FinetuningJob
    sizes: Sizes
    layer_order: Sequence[int]
    score: float
    stores: Path

    @property
    def original(self) -> Path:
        """The folder of the model that is made smaller."""
        return self.base.model_folder

    @property
    def metrics(self) -> list[str]:
        """What a search optimises, as trials report it."""
        return [self.base.task.primary, *(f"{name}_ratio" for name in self.config.target.ratios)]

    def candidate_of(self, sampled: dict[str, Any]) -> CandidateConfig:
        """What the trial with these values cuts, and how it trains."""
        shared = self.config.shared | {"model": str(self.original), "task": str(self.base.task_folder)}
        return trial_settings(CandidateConfig, {"finetune": shared}, sampled)

    def settings_of(self, sampled: dict[str, Any]) -> FinetuneConfig:
        """How the trial with these values trains; what counts of it is what was measured last, at its end."""
        settings = self.candidate_of(sampled).finetune
        return settings.model_copy(update={"best_by": None, "early_stopping_patience": None})

    def is_original(self, candidate: CandidateConfig) -> bool:
        """Whether nothing is cut, so that there is nothing to train again either."""
        wanted = (candidate.layers, candidate.heads, candidate.neurons)
        own = (self.sizes.layers, self.sizes.heads, self.sizes.neurons)
        return candidate.vocabulary is None and all(
            one in (None, size) for one, size in zip(wanted, own, strict=True)
        )

    def kept_layers(self, count: int) -> tuple[int, ...]:
        """The numbers of the layers that stay, increasing."""
        return tuple(sorted(self.layer_order[len(self.layer_order) - count :]))

    def task_of(self, folder: Path) -> Task:
        """The task as the model in a folder reads it, which may have lost some words."""
        return retokenized(self.base.task, load_tokenizer(folder), self.stores)
