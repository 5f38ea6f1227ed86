"""Pretraining as a job for the training loop: model, corpus and what is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.config.pretrain import PhaseConfig, PretrainConfig
from headway.data.batches import BatchSource
from headway.data.corpus.corpus import Corpus, open_corpus
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.pairs import PairObjective
from headway.data.pretraining.phases import PhasedBatches
from headway.data.sampling import BatchSizes
from headway.engine.distillation.imitation import Distillation
from headway.engine.distillation.teacher import Teacher
from headway.engine.model.encoder import (
    NEW_WEIGHTS,
    config_for,
    load_pretraining_model,
    new_pretraining_model,
    save_model,
)
from headway.engine.parallel.worker import Worker
from headway.engine.training.contrastive import ContrastivePretraining
from headway.engine.training.meter import Metrics
from headway.engine.training.objectives import PretrainingObjective
from headway.runs.context import Context
from headway.tracking.references import model_folder

_WORTH_A_LINE = 0.0005
"""Of the text: less is 0.0 % in words."""
_FEW_PAIRS = 0.25
"""Of the rows, those of one sentence from which on there is little of sentences to learn."""


@dataclass(frozen=True)
class PretrainingJob:
    """Pretraining on a prepared corpus, from scratch or from `start_from`, with a teacher or without."""

    config: PretrainConfig
    corpus_folder: Path
    start_from: Path | None
    teacher: Path | None = None

    @property
    def pairs(self) -> PairObjective | None:
        """What is predicted about pairs of sentences, if anything."""
        return next((name for name in ("nsp", "sop") if name in self.config.objective), None)

    @property
    def _is_contrastive(self) -> bool:
        return ContrastivePretraining.name in self.config.objective

    def objective(self) -> nn.Module:
        """See `TrainingJob`."""
        tokenizer = Corpus(self.corpus_folder).tokenizer
        with_pairs = self.pairs is not None
        if self.start_from is not None:
            torch.manual_seed(self.config.seed)
            model = load_pretraining_model(self.start_from, with_pairs, len(tokenizer))
        else:
            assert not isinstance(self.config.model, str)
            longest = max(phase.max_length for phase in self._phases)
            shape = config_for(self.config.model, tokenizer, longest)
            model = new_pretraining_model(shape, with_pairs, self.config.seed)
        if self._is_contrastive:
            return ContrastivePretraining(model)
        objective = PretrainingObjective(model, self.pairs)
        if self.config.distill is not None:
            assert self.teacher is not None
            teacher = load_pretraining_model(self.teacher, next_sentence=False)
            if self.config.distill.logits and getattr(teacher, NEW_WEIGHTS):
                raise ConfigError(f"distill.teacher: {str(self.teacher)!r} has no head for masked words")
            objective.distillation = Distillation(self.config.distill, "words", model, Teacher(teacher))
        return objective

    def batches(self) -> tuple[PretrainingBatches | PhasedBatches, BatchSource]:
        """See `TrainingJob`."""
        phases = self._phases
        train = [self._batches("train", phase, None) for phase in phases]
        validation = self._batches("validation", phases[-1], self.config.validation_rows)
        total = self.config.total_steps(train[0])
        starts = np.cumsum([0.0, *(phase.fraction for phase in phases[:-1])])
        first_steps = [round(start * total) for start in starts]
        for batches, phase, first in zip(train, phases, first_steps, strict=True):
            full, warmup = phase.batch_size or self.config.batch_size, self.config.batch_warmup
            batches.batch_sizes = BatchSizes.of_run(full, warmup, total, first)
        return train[0] if len(train) == 1 else PhasedBatches(train, first_steps), validation

    @property
    def _phases(self) -> list[PhaseConfig]:
        length = Corpus(self.corpus_folder).facts["max_length"]
        return self.config.phases or [PhaseConfig(max_length=length, fraction=1.0)]

    def _batches(self, split: str, phase: PhaseConfig, max_rows: int | None) -> PretrainingBatches:
        corpus = Corpus(self.corpus_folder)
        return PretrainingBatches(
            corpus.store(split),
            corpus.tokenizer,
            max_length=phase.max_length,
            masking=self.config.masking,
            pairs=self.pairs,
            in_two_parts=self._is_contrastive,
            batch_sizes=BatchSizes(self.config.batch_size),
            seed=self.config.seed,
            batch_tokens=self.config.batch_tokens,
            max_rows=max_rows,
        )

    def evaluator(self, worker: Worker) -> None:
        """See `TrainingJob`."""

    def save(self, objective: nn.Module, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer is saved with the model."""
        assert isinstance(objective, PretrainingObjective)
        save_model(objective.model, folder)
        Corpus(self.corpus_folder).tokenizer.save_pretrained(folder)


def pair_notes(batches: PretrainingBatches | PhasedBatches) -> list[str]:
    """What to tell of sentence pairs before training: what they leave out, and texts that have few."""
    phases = _phases_of(batches)
    notes = [
        f"pairs of at most {phase.max_length} tokens leave out {phase.truncated_fraction:.1%} of the text"
        for phase in phases
        if phase.truncated_fraction >= _WORTH_A_LINE
    ]
    alone = phases[0].one_sentence_fraction
    if alone >= _FEW_PAIRS:
        notes.append(
            f"{alone:.0%} of the rows are one sentence: each is paired with its own second half or the end "
            "of another; objective [mlm] trains without pairs"
        )
    return notes


def truncation(batches: PretrainingBatches | PhasedBatches) -> list[tuple[int, Metrics]]:
    """The fraction of the text that pairs leave out, by the first step of each phase."""
    firsts = batches.first_steps if isinstance(batches, PhasedBatches) else [0]
    fractions = [phase.truncated_fraction for phase in _phases_of(batches)]
    return [
        (first, {"truncated_fraction": fraction}) for first, fraction in zip(firsts, fractions, strict=True)
    ]


def _phases_of(batches: PretrainingBatches | PhasedBatches) -> Sequence[PretrainingBatches]:
    return batches.phases if isinstance(batches, PhasedBatches) else [batches]


def corpus_folder(
    config: PretrainConfig,
    base: Path | None,
    context: Context,
    prepare: Callable[[CorpusConfig, Context], Corpus],
) -> Path:
    """The folder of the prepared corpus; to continue `base`, text is tokenised with its tokenizer.

    Args:
        config: names a prepared corpus, or has the settings of one.
        base: folder of the model to continue.
        context: of the step.
        prepare: what prepares a corpus by its settings.
    """
    if not isinstance(config.corpus, CorpusConfig):
        folder = open_corpus(Path(config.corpus).expanduser()).folder.resolve()
    else:
        settings = config.corpus
        if base is not None and settings.tokenizer is None:
            settings = settings.model_copy(update={"tokenizer": base})
        folder = prepare(settings, context).folder.resolve()
    if base is not None:
        _check_vocabulary(Corpus(folder), base)
    return folder


def _check_vocabulary(corpus: Corpus, start_from: Path) -> None:
    """Refuse to continue a model with token ids that mean something else to it."""
    ids = corpus.tokenizer.get_vocab()
    if any(ids.get(token) != number for token, number in load_tokenizer(start_from).get_vocab().items()):
        raise ConfigError(
            f"corpus: it was tokenised with another vocabulary than the model's; prepare it with "
            f"tokenizer: {start_from}"
        )


def teacher_folder(config: PretrainConfig, corpus: Path, context: Context) -> Path | None:
    """The folder of the model to learn from; None if the settings name none.

    Raises:
        ConfigError: its vocabulary is not the corpus'.
    """
    if config.distill is None:
        return None
    folder = model_folder(config.distill.teacher, context.tracking).resolve()
    _check_vocabulary(Corpus(corpus), folder)
    return folder


def start_from(config: PretrainConfig, context: Context) -> Path | None:
    """The folder of the model that training continues; None to train a new one."""
    if isinstance(config.model, str):
        return model_folder(config.model, context.tracking).resolve()
    return None
