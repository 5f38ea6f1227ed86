"""Pretraining as a job for the training loop: model, corpus and what is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from headway.config.base import ConfigError
from headway.config.corpora.mixture import MixtureConfig
from headway.config.corpus import CorpusConfig
from headway.config.mistakes import suggest
from headway.config.pretrain import PhaseConfig, PretrainConfig
from headway.data.batches import BatchSource
from headway.data.corpus.corpus import Corpus, open_corpus
from headway.data.corpus.mixture import CorpusSource, is_mixture, open_sources, write_mixture
from headway.data.corpus.tokenizer import load_tokenizer
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.pretraining.mixture import MixedBatches
from headway.data.pretraining.pairs import PairObjective
from headway.data.pretraining.phases import PhasedBatches, RowBatches
from headway.data.sampling import BatchSizes, derived_seed
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

Prepare = Callable[[CorpusConfig, Context], Corpus]
"""Prepares a corpus by its settings."""
_WORTH_A_LINE = 0.0005
"""Of the text: less is 0.0 % in words."""
_FEW_PAIRS = 0.25
"""Of the rows, those of one sentence from which on there is little of sentences to learn."""


@dataclass(frozen=True)
class PretrainingJob:
    """Pretraining on a prepared corpus, from scratch or from `start_from`, with a teacher or without.

    `corpus_folder` may be that of a mixture of several.
    """

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
        tokenizer = self._corpus.tokenizer
        with_pairs = self.pairs is not None
        if self.start_from is not None:
            torch.manual_seed(self.config.seed)
            model = load_pretraining_model(self.start_from, with_pairs, len(tokenizer))
        else:
            assert not isinstance(self.config.model, str)
            longest = max(self._length(phase) for phase in self._phases)
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

    def batches(self) -> tuple[RowBatches | PhasedBatches, BatchSource]:
        """See `TrainingJob`.

        Raises:
            ConfigError: a mixture without `steps`, or a phase with sources that it does not have.
        """
        phases = self._phases
        train = [self._batches("train", phase, None) for phase in phases]
        validation = self._batches("validation", phases[-1], self.config.validation_rows)
        if isinstance(train[0], MixedBatches) and self.config.steps is None:
            raise ConfigError("steps: missing; a mixture of corpora has no epochs")
        total = self.config.total_steps(train[0])
        first_steps = self.config.first_steps(total)
        for batches, phase, first in zip(train, phases, first_steps, strict=True):
            full, warmup = phase.batch_size or self.config.batch_size, self.config.batch_warmup
            batches.batch_sizes = BatchSizes.of_run(full, warmup, total, first)
        self._continue_draws(train, [*first_steps[1:], total], first_steps)
        return train[0] if len(train) == 1 else PhasedBatches(train, first_steps), validation

    @staticmethod
    def _continue_draws(train: Sequence[RowBatches], ends: Sequence[int], firsts: Sequence[int]) -> None:
        """Have each phase go on where the last one with rows of the same length stopped."""
        last: dict[int, tuple[RowBatches, int]] = {}
        for batches, first, end in zip(train, firsts, ends, strict=True):
            if batches.max_length in last:
                before, steps = last[batches.max_length]
                if isinstance(batches, MixedBatches) and isinstance(before, MixedBatches):
                    batches.drawn_before = before.drawn_until(steps)
                else:
                    drawn = before.batch_sizes.before_step(steps)
                    batches.batch_sizes = batches.batch_sizes._replace(rows_before=drawn)
            last[batches.max_length] = (batches, end - first)

    @property
    def _corpus(self) -> Corpus:
        """The corpus, or the first of a mixture, whose tokenizer all have."""
        return _first_corpus(self.corpus_folder)

    @property
    def _phases(self) -> list[PhaseConfig]:
        return self.config.phases or [PhaseConfig(fraction=1.0)]

    def _length(self, phase: PhaseConfig) -> int:
        return phase.max_length or self._corpus.facts["max_length"]

    def _batches(self, split: str, phase: PhaseConfig, max_rows: int | None) -> RowBatches:
        sources = open_sources(self.corpus_folder)
        if not is_mixture(self.corpus_folder):
            return self._batches_of(sources[""].corpus, split, phase, max_rows, self.config.seed)
        weights = {name: source.weight for name, source in sources.items()}
        if phase.sources is not None:
            _check_names(phase.sources, weights)
            weights = {name: phase.sources.get(name, 0.0) for name in weights}
        made: dict[str, PretrainingBatches] = {}
        for number, (name, source) in enumerate(sources.items()):
            rows = None
            if max_rows is not None:
                rows = round(max_rows * weights[name] / sum(weights.values()))
                if rows == 0:
                    continue
            seed = derived_seed(self.config.seed, number)
            made[name] = self._batches_of(source.corpus, split, phase, rows, seed)
        chosen = [weights[name] for name in made]
        return MixedBatches(list(made.values()), chosen, BatchSizes(self.config.batch_size))

    def _batches_of(
        self, corpus: Corpus, split: str, phase: PhaseConfig, max_rows: int | None, seed: int
    ) -> PretrainingBatches:
        masking = self.config.masking
        if phase.masking_rate is not None:
            masking = masking.model_copy(update={"rate": phase.masking_rate})
        return PretrainingBatches(
            corpus.store(split),
            corpus.tokenizer,
            max_length=self._length(phase),
            masking=masking,
            pairs=self.pairs,
            in_two_parts=self._is_contrastive,
            batch_sizes=BatchSizes(self.config.batch_size),
            seed=seed,
            batch_tokens=self.config.batch_tokens,
            max_rows=max_rows,
        )

    def evaluator(self, worker: Worker) -> None:
        """See `TrainingJob`."""

    def save(self, objective: nn.Module, folder: Path) -> None:
        """See `TrainingJob`; the tokenizer is saved with the model."""
        assert isinstance(objective, PretrainingObjective)
        save_model(objective.model, folder)
        self._corpus.tokenizer.save_pretrained(folder)


def _check_names(wanted: Mapping[str, float], known: Mapping[str, float]) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(f"phases: there is no source {name!r}{suggest(name, known)}")


def mixture_notes(batches: RowBatches | PhasedBatches, job: PretrainingJob) -> list[str]:
    """How often a run reads the rows of each source of a mixture."""
    if not is_mixture(job.corpus_folder):
        return []
    total = job.config.total_steps(batches)
    phases = _phases_of(batches)
    ends = [*job.config.first_steps(total)[1:], total]
    notes = []
    for number, (name, _) in enumerate(open_sources(job.corpus_folder).items()):
        epochs: dict[int, float] = {}
        for phase, first, end in zip(phases, job.config.first_steps(total), ends, strict=True):
            assert isinstance(phase, MixedBatches)
            epochs[phase.max_length] = phase.drawn_until(end - first)[number] / phase.sources[number].rows
        notes.append(f"{name}: {sum(epochs.values()):.2g} epochs")
    return notes


def pair_notes(batches: RowBatches | PhasedBatches) -> list[str]:
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


def truncation(batches: RowBatches | PhasedBatches) -> list[tuple[int, Metrics]]:
    """The fraction of the text that pairs leave out, by the first step of each phase."""
    firsts = batches.first_steps if isinstance(batches, PhasedBatches) else [0]
    fractions = [phase.truncated_fraction for phase in _phases_of(batches)]
    return [
        (first, {"truncated_fraction": fraction}) for first, fraction in zip(firsts, fractions, strict=True)
    ]


def _phases_of(batches: RowBatches | PhasedBatches) -> Sequence[RowBatches]:
    return batches.phases if isinstance(batches, PhasedBatches) else [batches]


def corpus_folder(config: PretrainConfig, base: Path | None, context: Context, prepare: Prepare) -> Path:
    """The folder of the prepared corpus, or of a mixture.

    To continue `base`, text is tokenised with its tokenizer.

    Args:
        config: names a prepared corpus, or has the settings of one or several.
        base: folder of the model to continue.
        context: of the step.
        prepare: what prepares a corpus by its settings.
    """
    if isinstance(config.corpus, MixtureConfig):
        folder = _mixture_folder(config.corpus, base, context, prepare)
    elif isinstance(config.corpus, str) and is_mixture(Path(config.corpus).expanduser()):
        folder = Path(config.corpus).expanduser().resolve()
    else:
        folder = _prepared(config.corpus, base, context, prepare).folder
    if base is not None:
        _check_vocabulary(_first_corpus(folder), base)
    return folder


def _mixture_folder(
    config: MixtureConfig, tokenizer: Path | None, context: Context, prepare: Prepare
) -> Path:
    sources: dict[str, CorpusSource] = {}
    for name, source in config.sources.items():
        corpus = _prepared(source.corpus, tokenizer, context, prepare)
        tokenizer = tokenizer or corpus.folder / "tokenizer"
        sources[name] = CorpusSource(corpus, source.weight)
    return write_mixture(context.stores / "mixtures", sources).resolve()


def _prepared(
    config: str | CorpusConfig, tokenizer: Path | None, context: Context, prepare: Prepare
) -> Corpus:
    """A corpus; if its settings name no tokenizer, it is tokenised with this one."""
    if not isinstance(config, CorpusConfig):
        return Corpus(open_corpus(Path(config).expanduser()).folder.resolve())
    if tokenizer is not None and config.tokenizer is None:
        config = config.model_copy(update={"tokenizer": tokenizer})
    return Corpus(prepare(config, context).folder.resolve())


def _first_corpus(folder: Path) -> Corpus:
    """The corpus in a folder, or the first of a mixture, whose tokenizer all have."""
    return next(iter(open_sources(folder).values())).corpus


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
    _check_vocabulary(_first_corpus(corpus), folder)
    return folder


def start_from(config: PretrainConfig, context: Context) -> Path | None:
    """The folder of the model that training continues; None to train a new one."""
    if isinstance(config.model, str):
        return model_folder(config.model, context.tracking).resolve()
    return None
