"""A task by whose rows a smaller model is made and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headway.config.finetune import FinetuneConfig
from headway.data.batch import Batch
from headway.data.corpus.vocabulary import most_used_tokens, smaller_tokenizer
from headway.data.sampling import random_generator
from headway.engine.parallel.worker import Worker
from headway.engine.pruning.vocabulary import keep_tokens
from headway.engine.training.objectives import TaskObjective
from headway.runs.finetuning import score
from headway.runs.held_out import finetune_settings
from headway.runs.teaching import fine_tuned
from headway.tasks.preparation import retokenized
from headway.tasks.task import Task

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Judge:
    """A prepared task, and how a model reads it.

    Attributes:
        task: prepared with the tokenizer.
        tokenizer: of the models that are judged.
        settings: of a fine-tuning on the task.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    settings: FinetuneConfig

    @classmethod
    def of(cls, task: Task, folder: Path) -> Self:
        """A task, read as the model in a folder reads it."""
        return cls(task, task.tokenizer_of(folder), finetune_settings(folder, task, {"precision": "fp32"}))

    def objective(self, folder: Path) -> TaskObjective:
        """The loss around a model that was fine-tuned on the task.

        Raises:
            ConfigError: it was not.
        """
        return fine_tuned(folder, self.task, self.settings)

    def sample(self, count: int, seed: int) -> list[Batch]:
        """Batches of some training rows, chosen at random."""
        rows = self.task.trained_on(self.task.split("train"))
        chosen = random_generator(seed).permutation(len(rows))[:count]
        return list(self._batches(rows.take(sorted(chosen.tolist()))).in_order(0, 1, _BATCH_SIZE))

    def score(self, model: PreTrainedModel, prefix: str) -> dict[str, float]:
        """The loss and the primary score of a model on the validation rows."""
        rows = self.task.split("validation")
        objective = self.task.objective(model, self.settings, self.task.split("train").take(range(1)))
        scores = score(objective, self.task, rows, self._batches(rows), Worker(), self.settings)
        return {f"{prefix}_{name}": scores[name] for name in ("loss", self.task.primary)}

    def _batches(self, rows: Any) -> Any:
        return self.task.batches(rows, self.tokenizer, batch_size=_BATCH_SIZE)

    def with_vocabulary(self, model: PreTrainedModel, size: int | None, stores: Path) -> Self:
        """Keep only some words of a model, in place, and read the task with those.

        Args:
            model: reads with this tokenizer.
            size: of the vocabulary; if None, all that the training texts use stay.
            stores: folder of prepared tasks.

        Raises:
            ConfigError: the tokenizer cannot be cut so.
        """
        texts = [text for row in self.task.split("train").texts for text in row]
        kept = most_used_tokens(self.tokenizer, texts, size)
        keep_tokens(model, kept)
        tokenizer = smaller_tokenizer(self.tokenizer, kept)
        return replace(self, task=retokenized(self.task, tokenizer, stores), tokenizer=tokenizer)
