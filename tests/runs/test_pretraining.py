"""Pretraining with the settings of `pipelines/bert-base.yaml`, on a tiny encoder and in this process."""

from __future__ import annotations

import contextlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForPreTraining,
    get_polynomial_decay_schedule_with_warmup,
)

from headway.config.loading import validate
from headway.config.pretrain import ModelConfig, PretrainConfig
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.storage import Folder
from headway.engine.model.encoder import bert_config, new_pretraining_model, save_model
from headway.engine.parallel.worker import Worker
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Stopped, Trainer
from headway.runs.journal import read_journal
from headway.runs.pretraining import PretrainingJob
from headway.steps.pretrain import run_pretrain

SHIPPED = Path(__file__).parents[2] / "pipelines" / "bert-base.yaml"
STEPS = 40
PHASES = [{"max_length": 16, "fraction": 0.9}, {"max_length": 32, "fraction": 0.1, "batch_size": 6}]


@pytest.fixture(scope="module")
def config(corpus, tiny_shape) -> PretrainConfig:
    """What the pipeline says, but smaller: the phases' shares of the steps and all kinds of settings stay."""
    settings = yaml.safe_load(SHIPPED.read_text())["steps"]["pretrain"]
    assert settings.pop("use") == "pretrain"
    assert [phase["fraction"] for phase in settings["phases"]] == [0.9, 0.1]
    assert settings["schedule"] == {"name": "polynomial", "warmup": 0.05, "power": 1.0}
    assert settings["optimizer"]["name"] == "lamb" and settings["masking"]["whole_words"]
    settings |= {
        "corpus": str(corpus.folder),
        "model": tiny_shape,
        "steps": STEPS,
        "phases": PHASES,
        "batch_size": 12,
        "batch_warmup": {"start": 4, "fraction": 0.1},
        "gradient_accumulation": 2,
        "optimizer": settings["optimizer"] | {"learning_rate": 2e-2},
        "precision": "fp32",
        "workers": 0,
        "log_every": 1,
        "evaluate_every": 20,
        "checkpoint_every": 100,
        "log_rows": True,
    }
    return validate(PretrainConfig, settings)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Any:
    from headway.display import Display
    from headway.runs.context import Context
    from headway.tracking import Tracking

    root = tmp_path_factory.mktemp("runs")
    context = Context("test", "pretrain", root, root / "pretrain", Tracking.at(root), Display(quiet=True))
    context.folder.mkdir()
    return run_pretrain(config, context), context


def test_batches_grow_and_shrink_as_the_settings_say(run):
    """Over the first tenth of the steps from 4 to 12; in the last tenth 6."""
    _, context = run
    rows = [json.loads(line) for line in sorted((context.folder / "rows").iterdir())[0].open()]
    sizes = [len(row["rows"]) for row in rows]
    assert sizes == [4, 6, 8, 10] + [12] * 32 + [6] * 4


def test_the_rate_falls_by_the_polynomial_of_transformers(run, config):
    _, context = run
    entries = read_journal(context.folder / "journal.jsonl")
    seen = {e.step: e.metrics["learning_rate"] for e in entries if "learning_rate" in e.metrics}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optimizer.learning_rate)
    schedule = get_polynomial_decay_schedule_with_warmup(optimizer, 2, STEPS, 0.0, power=1.0)
    expected = []
    for _ in range(STEPS):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [seen[step] for step in range(1, 3)] == pytest.approx([2e-2 / 3, 4e-2 / 3])
    assert [seen[step] for step in range(3, STEPS + 1)] == pytest.approx(expected[2:])


def test_held_out_rows_are_as_long_as_those_of_the_last_phase(config, corpus):
    validation = PretrainingJob(config, corpus.folder, None).batches()[1]
    assert 16 < max(int(batch.lengths.max()) for batch in validation.in_order(0, 1, 4)) <= 32


def test_the_model_learns_and_reads_the_longest_phase(run):
    result, _ = run
    model = BertForPreTraining.from_pretrained(result.output)
    assert model.config.max_position_embeddings >= 32
    assert result.summary["validation_loss_end"] < 0.9 * result.summary["validation_loss_start"]


def test_a_run_stopped_in_one_phase_and_resumed_in_the_next_is_bit_identical(config, corpus, tmp_path):
    """Stopped before the second phase begins after step 36, with batches of another length and size."""
    job = PretrainingJob(config, corpus.folder, None)

    def train(checkpoints: Checkpoints | None = None, stop_after: int | None = None) -> Trainer:
        def stop(info: StepInfo) -> None:
            info.stop = info.step == stop_after

        trainer = Trainer(job.objective(), job.batches()[0], config, checkpoints=checkpoints)
        trainer.add_hook(stop)
        with contextlib.suppress(Stopped):
            trainer.run()
        return trainer

    whole = train().objective.state_dict()
    train(Checkpoints(Folder(tmp_path), Worker()), stop_after=35)
    resumed = train(Checkpoints(Folder(tmp_path), Worker()))
    assert resumed.start_step == 35
    for name, weight in resumed.objective.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_the_order_of_sentences_is_learnt_beside_their_words(corpus, tiny_shape):
    """A model that knows nothing tells order from disorder in half of the pairs."""
    settings = {"corpus": str(corpus.folder), "model": tiny_shape, "objective": ["mlm", "sop"], "steps": 3}
    job = PretrainingJob(validate(PretrainConfig, settings | {"batch_size": 8}), corpus.folder, None)
    trainer = Trainer(job.objective(), job.batches()[0], job.config)
    reports: list[dict[str, float]] = []
    trainer.add_evaluation(partial(mean_losses, validation=job.batches()[1], worker=Worker(), batch_size=8))
    trainer.add_hook(lambda info: reports.append(info.metrics))
    trainer.run()
    names = {f"{kind}_{part}" for kind in ("mlm", "sop") for part in ("loss", "accuracy")}
    assert {name for name in reports[0] if name != "validation_loss"} == {f"validation_{n}" for n in names}
    assert reports[0]["validation_sop_loss"] == pytest.approx(math.log(2), rel=0.02)
    assert reports[-1]["sop_loss"] == pytest.approx(math.log(2), rel=0.2)


def test_a_model_goes_on_with_the_words_that_its_tokenizer_gained(
    corpus, tiny_shape, texts, make_context, tmp_path
):
    """What it says of the words that it knew stays, but for what one tiny step changes."""
    model = tmp_path / "model"
    shape = bert_config(ModelConfig(**tiny_shape), len(corpus.tokenizer), 32, corpus.tokenizer.pad_token_id)
    save_model(new_pretraining_model(shape, next_sentence=False, seed=1), model)
    corpus.tokenizer.save_pretrained(model)
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": f"{t} A zyxgloop sails."}) + "\n" for t in texts))
    settings = {
        "corpus": {"source": str(source), "tokenizer": str(model), "extend_tokenizer": 1, "max_length": 32},
        "model": str(model),
        "objective": "mlm",
        "steps": 1,
        "batch_size": 8,
        "optimizer": {"learning_rate": 1e-9},
        "precision": "fp32",
    }
    folder = run_pretrain(validate(PretrainConfig, settings), make_context("adapt")).output
    before, after = (AutoModelForMaskedLM.from_pretrained(path).eval() for path in (model, folder))
    tokenizer, known = AutoTokenizer.from_pretrained(folder), len(corpus.tokenizer)
    assert tokenizer.tokenize("A zyxgloop") == ["a", "zyxgloop"]
    assert after.config.vocab_size == len(tokenizer) == known + 1
    words = after.get_input_embeddings().weight
    assert torch.equal(after.get_output_embeddings().weight, words)
    # A new word begins near the mean of all others.
    others = before.get_input_embeddings().weight
    assert (words[known] - others.mean(0)).norm() < 0.2 * others.norm(dim=1).mean()
    encoded = tokenizer("The sailor steers the boat.", return_tensors="pt")
    with torch.inference_mode():
        theirs, ours = before(**encoded).logits, after(**encoded).logits
    torch.testing.assert_close(ours[..., :known], theirs, rtol=1e-4, atol=1e-5)
