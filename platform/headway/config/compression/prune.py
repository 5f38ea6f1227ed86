"""Settings of the step `prune`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from headway.config.base import INPUT, Config, Count, Positive
from headway.config.finetune import folder_or_settings
from headway.config.tasks import AnyTask


class PruneConfig(Config):
    """The step `prune`: cuts a trained encoder down to some of its layers, heads, neurons and words.

    What comes out is a smaller encoder of the same kind, for `finetune` or `pretrain` to train further.
    """

    model: str = Field(
        min_length=1,
        description="a bert, distilbert or modernbert: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    task: (
        Annotated[
            Annotated[str, Tag("folder")] | Annotated[AnyTask, Tag("settings")],
            Discriminator(folder_or_settings),
        ]
        | None
    ) = Field(
        None,
        description="what the model was fine-tuned on: its training rows say what is important; the folder "
        "of a prepared task, or the settings to prepare one",
        json_schema_extra=INPUT,
    )
    layers: Positive | tuple[Count, ...] | None = Field(
        None,
        description="how many layers stay, or which, counted from 0, such as [0, 2, 4]; all if not set",
    )
    heads: Positive | None = Field(
        None,
        description="heads of each layer that stay; hidden states keep as many columns as these have "
        "together, since hidden_size is heads x head size in all of these encoders; all if not set",
    )
    neurons: Positive | None = Field(
        None, description="neurons of each feed-forward layer that stay; all if not set"
    )
    vocabulary: Positive | None = Field(
        None,
        description="tokens that stay of a WordPiece tokenizer: special ones, single characters, and those "
        "that the task's training texts use most, into which other words are then split; all if not set",
    )
    by: Literal["importance", "magnitude"] = Field(
        "importance",
        description="importance: how much the loss on rows of the task depends on each part, layers being "
        "dropped one by one; magnitude: the norm of its weights, and the lowest layers, without any rows",
    )
    samples: Positive = Field(512, description="training rows that importance is measured on")
    seed: Count = Field(0, description="of the choice of these rows")

    @model_validator(mode="after")
    def _consistent(self) -> PruneConfig:
        wanted = (self.layers, self.heads, self.neurons, self.vocabulary)
        if all(one is None for one in wanted):
            raise ValueError("give layers, heads, neurons or vocabulary: what should stay of the model")
        if isinstance(self.layers, tuple) and sorted(set(self.layers)) != list(self.layers):
            raise ValueError(f"layers {list(self.layers)} should be increasing numbers, each once")
        if self.layers == ():
            raise ValueError("layers [] should have at least one number")
        if self.measures_importance and self.task is None:
            raise ValueError("by importance needs task, whose rows it is measured on; magnitude does not")
        if self.vocabulary is not None and self.task is None:
            raise ValueError("vocabulary needs task, whose texts say which tokens are used")
        if self.task is not None and not self.measures_importance and self.vocabulary is None:
            raise ValueError(f"task does nothing for layers {self.layers!r} by {self.by}; leave it out")
        return self

    @property
    def measures_importance(self) -> bool:
        """Whether rows of a task decide what stays."""
        counts = isinstance(self.layers, int) or self.heads is not None or self.neurons is not None
        return self.by == "importance" and counts
