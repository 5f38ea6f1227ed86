"""The training loop: what is learnt depends neither on how the work is cut up nor on being broken off."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForPreTraining

from headway.config.pretrain import PretrainConfig
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.hardware.device import use_tf32
from headway.engine.parallel.worker import Worker
from headway.engine.training.evaluation import mean_losses
from headway.engine.training.health import TrainingError
from headway.engine.training.hooks import StepInfo
from headway.engine.training.trainer import Evaluator, Metrics, Trainer
from headway.runs.pretraining import PretrainingJob
from ports import free_port
from waiting import PATIENCE

Reports = list[tuple[int, Metrics]]


@pytest.fixture
def job(corpus: Any, tiny_shape: dict[str, Any]) -> PretrainingJob:
    """Ten steps of masked language modelling and next sentences, in float32, without dropout."""
    config = PretrainConfig.model_validate(
        {
            "corpus": str(corpus.folder),
            "model": tiny_shape,
            "steps": 10,
            "batch_size": 12,
            "precision": "fp32",
            "optimizer": {"learning_rate": 3e-3},
            "log_every": 1,
            "evaluate_every": 5,
            "checkpoint_every": 5,
        }
    )
    return PretrainingJob(config, corpus.folder, None)


def changed(job: PretrainingJob, **settings: Any) -> PretrainingJob:
    return replace(job, config=job.config.model_copy(update=settings))


def with_dropout(job: PretrainingJob) -> PretrainingJob:
    assert not isinstance(job.config.model, str)
    return changed(job, model=job.config.model.model_copy(update={"dropout": 0.2, "attention_dropout": 0.1}))


def train(
    job: PretrainingJob, state_folder: Path | None = None, stop_after: int | None = None
) -> tuple[dict[str, Tensor], Reports]:
    """Weights after training, and all that was reported; `stop_after` breaks off as a kill would."""
    reports: Reports = []

    def report(info: StepInfo) -> None:
        if info.metrics:
            reports.append((info.step, info.metrics))
        if info.step == stop_after:
            raise KeyboardInterrupt

    batches, validation = job.batches()
    checkpoints = Checkpoints(Folder(state_folder), Worker()) if state_folder else None
    trainer = Trainer(job.objective(), batches, job.config, checkpoints=checkpoints)
    trainer.add_evaluation(losses_on(validation, job.config.batch_size))
    trainer.add_hook(report)
    try:
        trainer.run()
    except KeyboardInterrupt:
        if stop_after is None:
            raise
        if checkpoints:
            checkpoints.wait()  # a state may still be in flight
    return {name: weight.clone() for name, weight in trainer.objective.state_dict().items()}, reports


def losses_on(validation: Any, batch_size: int) -> Evaluator:
    return partial(mean_losses, validation=validation, worker=Worker(), batch_size=batch_size)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=2e-5, msg=name)


def test_the_same_job_gives_the_same_bits(job):
    assert_equal(train(with_dropout(job))[0], train(with_dropout(job))[0])


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_a_run_broken_off_and_resumed_is_bit_identical(optimizer, job, tmp_path):
    """With dropout: its random numbers, too, are functions of seed and step."""
    config = job.config.optimizer.model_copy(update={"name": optimizer})
    job = changed(with_dropout(job), optimizer=config)
    whole, whole_reports = train(job)
    # A state is saved after step 5; step 7 is trained, lost, and trained again.
    train(job, tmp_path, stop_after=7)
    resumed, reports = train(job, tmp_path)
    assert reports[0][0] == 6
    assert_equal(whole, resumed)
    assert losses(whole_reports)[5:] == losses(reports)


def losses(reports: Reports) -> list[tuple[int, float, float]]:
    return [(step, m["mlm_loss"], m["nsp_loss"]) for step, m in reports if "mlm_loss" in m]


def test_a_finished_run_is_not_trained_further(job, tmp_path):
    whole, _ = train(job, tmp_path)
    again, reports = train(job, tmp_path)
    assert_equal(whole, again)
    assert losses(reports) == []


def test_a_batch_in_parts_teaches_what_the_whole_batch_does(job):
    whole, reports = train(job)
    parts, part_reports = train(changed(job, gradient_accumulation=3))
    assert_close(whole, parts)
    for (_, *one), (_, *other) in zip(losses(reports), losses(part_reports), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_two_workers_learn_what_one_does(job, tmp_path):
    alone, alone_reports = train(job)
    path = tmp_path / "job.pickle"
    path.write_bytes(pickle.dumps(job))
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("train_on_two_workers.py")), path, tmp_path / "w"],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        assert process.wait(timeout=PATIENCE) == 0, process.stderr.read() if process.stderr else ""
    first, second = (torch.load(tmp_path / f"w.{rank}") for rank in range(2))
    assert_equal(first, second)
    assert_close(alone, first)
    reports = [(step, metrics) for step, metrics in json.loads((tmp_path / "w.0.json").read_text())]
    for (_, *one), (_, *other) in zip(losses(alone_reports), losses(reports), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    validated = [m["validation_loss"] for _, m in alone_reports if "validation_loss" in m]
    assert validated == pytest.approx(
        [m["validation_loss"] for _, m in reports if "validation_loss" in m], rel=1e-3
    )


def test_the_loss_on_held_out_text_falls(job):
    reports = train(changed(job, steps=60))[1]
    held_out = [metrics["validation_mlm_loss"] for _, metrics in reports if "validation_mlm_loss" in metrics]
    # At first every token of the vocabulary is as likely as any other.
    vocabulary = job.batches()[0].vocabulary.size
    assert held_out[0] == pytest.approx(math.log(vocabulary), rel=0.1)
    assert held_out[-1] < 0.8 * held_out[0]


def test_reports_carry_what_a_user_watches(job):
    reports = train(job)[1]
    assert [step for step, _ in reports] == list(range(11))
    first, last = reports[0][1], reports[-1][1]
    assert {"validation_loss", "validation_mlm_loss", "validation_nsp_accuracy"} <= first.keys()
    assert {"mlm_loss", "nsp_loss", "tokens_per_second", "learning_rate", "gradient_norm"} <= last.keys()
    assert last["validation_loss"] == pytest.approx(
        last["validation_mlm_loss"] + last["validation_nsp_loss"], rel=1e-9
    )


def test_accuracies_are_those_of_transformers_on_the_same_rows(job):
    weights, reports = train(changed(job, steps=40, evaluate_every=40))
    ours = job.objective().model
    config = copy.deepcopy(ours.config)
    config._attn_implementation = "eager"
    model = BertForPreTraining(config).eval()
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
    right, words, sentences = torch.zeros(2), 0, 0
    for batch in job.batches()[1].in_order(0, 1, 1):
        with torch.inference_mode():
            said = model(input_ids=batch.input_ids[None], token_type_ids=batch.token_type_ids[None])
        guessed = said.prediction_logits[0, batch.masked_positions].argmax(-1)
        right[0] += (guessed == batch.masked_labels).sum()
        right[1] += (said.seq_relationship_logits.argmax(-1) == batch.labels).sum()
        words, sentences = words + len(guessed), sentences + 1
    last = reports[-1][1]
    assert last["validation_mlm_accuracy"] == pytest.approx(float(right[0]) / words, abs=1.01 / words)
    assert last["validation_nsp_accuracy"] == pytest.approx(float(right[1]) / sentences, abs=1.01 / sentences)
    assert last["validation_mlm_accuracy"] > reports[0][1]["validation_mlm_accuracy"]


def test_validation_does_not_depend_on_the_batch_size(job):
    scores = []
    for size in (5, 12):
        batches, validation = job.batches()
        config = job.config.model_copy(update={"batch_size": size})
        scores.append(Trainer(job.objective(), batches, config).evaluate(losses_on(validation, size)))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


class _Exploding(nn.Module):
    """An objective whose gradient is no number."""

    is_contrastive = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def predictions(self, batch: Any) -> dict[str, int]:
        return {"mlm": 1}

    def forward(self, batch: Any) -> Any:
        from headway.engine.model.cross_entropy import Term

        return {"mlm": Term(self.weight.sum() / 0.0, torch.tensor(1), torch.tensor(0))}


def test_a_loss_that_explodes_ends_the_run_with_the_step(job):
    trainer = Trainer(_Exploding(), job.batches()[0], job.config, worker=Worker())
    with pytest.raises(TrainingError, match="step 1 is not finite; try a lower learning_rate"):
        trainer.run()


def test_a_run_goes_on_from_before_a_gradient_that_was_not_finite(job, tmp_path):
    """No state is due before the eighth step, whose gradient is broken."""
    job = changed(job, checkpoint_every=100)
    whole, _ = train(job)
    checkpoints = Checkpoints(Folder(tmp_path), Worker())
    trainer = Trainer(job.objective(), job.batches()[0], job.config, checkpoints=checkpoints)
    steps: list[int] = []
    trainer.add_hook(lambda info: steps.append(info.step))
    weight = next(trainer.objective.parameters())
    weight.register_hook(lambda gradient: gradient * (math.nan if len(steps) == 7 else 1.0))
    with pytest.raises(TrainingError, match="step 8 is not finite"):
        trainer.run()
    assert saved_steps(checkpoints.folder) == [7]
    resumed, reports = train(job, tmp_path)
    assert reports[0][0] == 8
    assert_equal(whole, resumed)


@pytest.mark.parametrize("before", ["ieee", "tf32"])
@pytest.mark.parametrize("wanted", [False, True])
def test_float32_products_are_in_tf32_only_if_asked_for(before, wanted, job):
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = before
    Trainer(job.objective(), job.batches()[0], changed(job, tf32=wanted).config)
    assert matmul.fp32_precision == ("tf32" if wanted else "ieee")
    assert matmul.allow_tf32 == wanted
    assert torch.get_float32_matmul_precision() == ("high" if wanted else "highest")
    use_tf32(False)


def test_tf32_is_off_when_not_set(job):
    assert not job.config.tf32


def test_bf16_learns_too(job):
    reports = train(changed(job, steps=40, precision="bf16"))[1]
    seen = [mlm for _, mlm, _ in losses(reports)]
    assert sum(seen[-5:]) < 0.9 * sum(seen[:5])
