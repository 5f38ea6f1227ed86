"""Pretraining on a mixture of corpora, in stages: what is read when, at which rate, and after a stop."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headway.config.base import ConfigError
from headway.config.loading import validate
from headway.config.pretrain import PretrainConfig
from headway.data.corpus.mixture import open_sources
from headway.data.pretraining.mixture import MixedBatches
from headway.data.pretraining.phases import PhasedBatches
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Stopped, Trainer
from headway.ray_data.corpus import prepared_corpus
from headway.runs.journal import read_journal
from headway.runs.lineage.data_splits import pretraining_splits
from headway.runs.pretraining import PretrainingJob, corpus_folder, mixture_notes
from headway.steps.pretrain import run_pretrain

STEPS = 20
PHASES = [
    {"fraction": 0.5, "sources": {"web": 1.0}, "masking_rate": 0.3},
    {"fraction": 0.3, "max_length": 16, "batch_size": 6},
    {"fraction": 0.2, "sources": {"web": 0.25, "best": 0.75}, "learning_rate_scale": 0.5},
]


@pytest.fixture(scope="module")
def settings(tiny_shape, other_pairs, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sources")
    for name, some in (("web", other_pairs[::2]), ("best", other_pairs[1:50:2])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text, _ in some)
        (folder / f"{name}.jsonl").write_text(lines)
    one = {"vocab_size": 300, "max_length": 32}
    sources = {
        "web": {"weight": 3, "corpus": {"source": f"{folder}/web.jsonl", **one}},
        "best": {"weight": 1, "corpus": {"source": f"{folder}/best.jsonl", "max_length": 32}},
    }
    return {
        "corpus": {"sources": sources},
        "model": tiny_shape,
        "objective": "mlm",
        "steps": STEPS,
        "phases": PHASES,
        "batch_size": 8,
        "schedule": {"name": "constant", "warmup": 0.0},
        "precision": "fp32",
        "log_every": 1,
        "evaluate_every": 10,
    }


@pytest.fixture
def job(settings, make_context) -> PretrainingJob:
    config = validate(PretrainConfig, settings)
    return PretrainingJob(config, corpus_folder(config, None, make_context("mixed"), prepared_corpus), None)


def test_each_phase_reads_its_sources_and_goes_on_where_rows_of_its_length_stopped(job):
    batches, validation = job.batches()
    assert isinstance(batches, PhasedBatches) and batches.first_steps == [0, 10, 16]
    first, short, last = phases = [phase for phase in batches.phases if isinstance(phase, MixedBatches)]
    assert first.drawn_until(10).tolist() == [80, 0]
    assert short.drawn_until(0).tolist() == [0, 0] and short.max_length == 16  # other rows
    assert last.drawn_until(0).tolist() == [80, 0]
    assert last.drawn_until(4).tolist() == [80 + 8, 24]
    assert [phase.sources[0].masking.rate for phase in phases] == [0.3, 0.15, 0.15]
    assert isinstance(validation, MixedBatches)
    assert validation.rows == sum(len(b.lengths) for b in validation.in_order(0, 1, 8))
    rows = [source.rows for source in first.sources]
    short_rows = [source.rows for source in short.sources]
    assert mixture_notes(batches, job) == [
        f"web: {88 / rows[0] + 27 / short_rows[0]:.2g} epochs",
        f"best: {24 / rows[1] + 9 / short_rows[1]:.2g} epochs",
    ]


def test_sources_have_one_tokenizer_and_masks_of_their_own(job):
    sources = open_sources(job.corpus_folder)
    web, best = (source.corpus for source in sources.values())
    assert web.tokenizer.get_vocab() == best.tokenizer.get_vocab()
    batches, _ = job.batches()
    assert isinstance(batches, PhasedBatches) and isinstance(batches.phases[0], MixedBatches)
    seeds = {source.seed for source in batches.phases[0].sources}
    assert len(seeds) == 2


def test_a_mixture_is_pretrained_at_the_rate_of_each_phase(settings, make_context):
    context = make_context("mixed")
    result = run_pretrain(validate(PretrainConfig, settings), context)
    entries = read_journal(context.folder / "journal.jsonl")
    rates = [entry.metrics["learning_rate"] for entry in entries if "learning_rate" in entry.metrics]
    assert rates == pytest.approx([1e-3] * 16 + [5e-4] * 4)
    assert result.summary["steps"] == STEPS
    [run] = context.tracking.client.search_runs([context.tracking.experiment_id("test")])
    names = {given.dataset.name for given in run.inputs.dataset_inputs}
    assert names >= {"web + best/train", "web + best/validation", "web.jsonl/train", "best.jsonl/validation"}


def test_a_run_stopped_in_one_phase_and_resumed_is_bit_identical(job, tmp_path):
    def train(checkpoints: Checkpoints | None = None, stop_after: int | None = None) -> Trainer:
        def stop(info: StepInfo) -> None:
            info.stop = info.step == stop_after

        trainer = Trainer(job.objective(), job.batches()[0], job.config, checkpoints=checkpoints)
        trainer.add_hook(stop)
        with contextlib.suppress(Stopped):
            trainer.run()
        return trainer

    whole = train().objective.state_dict()
    train(Checkpoints(Folder(tmp_path), Worker()), stop_after=15)
    resumed = train(Checkpoints(Folder(tmp_path), Worker()))
    assert resumed.start_step == 15
    for name, weight in resumed.objective.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_a_prepared_mixture_is_opened_and_its_names_are_checked(settings, job, make_context):
    again = settings | {"corpus": str(job.corpus_folder)}
    config = validate(PretrainConfig, again)
    assert corpus_folder(config, None, make_context("again"), prepared_corpus) == job.corpus_folder
    wrong = validate(PretrainConfig, again | {"phases": [{"fraction": 1.0, "sources": {"wep": 1}}]})
    with pytest.raises(ConfigError, match=r"phases: there is no source 'wep'; did you mean 'web'\?"):
        PretrainingJob(wrong, job.corpus_folder, None).batches()
    epochs = {name: value for name, value in again.items() if name != "steps"}
    with pytest.raises(ConfigError, match="steps: missing; a mixture of corpora has no epochs"):
        PretrainingJob(validate(PretrainConfig, epochs), job.corpus_folder, None).batches()


def test_corpora_of_different_vocabularies_are_not_mixed(settings, corpus, make_context):
    sources = settings["corpus"]["sources"] | {"other": {"weight": 1, "corpus": str(corpus.folder)}}
    config = validate(PretrainConfig, settings | {"corpus": {"sources": sources}})
    with pytest.raises(ConfigError, match=r"corpus.sources.other: it was tokenised with another vocabulary"):
        corpus_folder(config, None, make_context("mixed"), prepared_corpus)


def test_phases_of_one_length_on_one_corpus_do_not_read_the_same_rows_again(corpus, tiny_shape):
    phases = [{"fraction": 0.5}, {"fraction": 0.5, "masking_rate": 0.4}]
    given = {"corpus": str(corpus.folder), "model": tiny_shape, "steps": 6, "batch_size": 4, "phases": phases}
    batches, _ = PretrainingJob(validate(PretrainConfig, given), corpus.folder, None).batches()
    rows = [batches.micro_batches(step, 0, 1, 1)[0].row_ids.tolist() for step in range(6)]
    assert len({row for step in rows for row in step}) == 24 <= batches.rows


def test_a_single_corpus_has_its_own_name_among_the_inputs(corpus):
    assert set(pretraining_splits(Path(corpus.folder))) == {"train", "validation"}
