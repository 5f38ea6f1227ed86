"""The step `pretrain` on Ray Train: two workers learn what one does, and every figure arrives in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertForPreTraining

from headway.config.pretrain import PretrainConfig
from headway.engine.inference.encoder import load_for_inference
from headway.engine.model.heads import mean_pooled
from headway.engine.model.layout import layout_of_lengths
from headway.steps.pretrain import run_pretrain


@pytest.fixture(scope="module")
def config(corpus, tiny_shape) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "corpus": str(corpus.folder),
            "model": tiny_shape,
            "steps": 12,
            "batch_size": 12,
            "precision": "fp32",
            "optimizer": {"learning_rate": 3e-3},
            "log_every": 1,
            "evaluate_every": 6,
            "workers": 2,
        }
    )


@pytest.fixture(scope="module")
def step(config, runs, ray_cluster) -> tuple[Any, Path]:
    from headway.display import Display
    from headway.runs.context import Context
    from headway.tracking import Tracking

    folder = runs / "steps" / "pretrain-two"
    folder.mkdir(parents=True)
    context = Context("steps", "pretrain", runs, folder, Tracking.at(runs), Display(quiet=True))
    return run_pretrain(config, context), folder


def test_two_ray_workers_learn_what_one_process_does(step, config, make_context, runs):
    alone = run_pretrain(config.model_copy(update={"workers": 0}), make_context("without-ray", runs))
    models = [BertForPreTraining.from_pretrained(result.output).state_dict() for result in (step[0], alone)]
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], rtol=1e-3, atol=5e-5, msg=name)
    for figure in ("validation_loss_start", "validation_loss_end", "validation_nsp_accuracy"):
        assert step[0].summary[figure] == pytest.approx(alone.summary[figure], rel=1e-3)


def test_what_is_saved_opens_with_sentence_transformers_and_gives_the_same_vectors(step, texts):
    folder = step[0].output
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sequences = tokenizer(texts[:8], truncation=True, max_length=32)["input_ids"]
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    layout = layout_of_lengths(torch.tensor([len(sequence) for sequence in sequences]))
    encoder = load_for_inference(Path(folder), "BertModel", "fp32", torch.device("cpu"))
    with torch.inference_mode():
        ours = mean_pooled(encoder(ids, torch.zeros_like(ids), layout), layout)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts[:8], convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-4, atol=1e-5)


def test_the_loss_on_held_out_text_falls(step):
    summary = step[0].summary
    assert summary["validation_loss_end"] < summary["validation_loss_start"]
    assert summary["tokens_per_second"] > 0
    assert summary["startup_seconds"] > 0
    assert summary["steps"] == 12


def test_every_figure_is_in_mlflow(step, runs):
    from headway.tracking import tracking_uri

    client = MlflowClient(tracking_uri(runs))
    run_id = step[0].summary["mlflow_run_id"]
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["optimizer.learning_rate"] == "0.003"
    assert [m.step for m in client.get_metric_history(run_id, "validation_mlm_loss")] == [0, 6, 12]
    assert [m.step for m in client.get_metric_history(run_id, "mlm_loss")] == list(range(1, 13))
    assert found.data.metrics["validation_loss"] == pytest.approx(step[0].summary["validation_loss_end"])
    assert found.data.metrics["validation_nsp_accuracy"] == step[0].summary["validation_nsp_accuracy"]


def test_the_model_loads_with_its_tokenizer(step):
    from headway.data.corpus.tokenizer import load_tokenizer

    folder = Path(step[0].output)
    model = BertForPreTraining.from_pretrained(folder)
    assert model.config.vocab_size == len(load_tokenizer(folder))
    assert "headway" not in json.dumps(json.loads((folder / "config.json").read_text()))


@pytest.fixture
def told(make_context, tiny_shape, tmp_path, capsys):
    """A function that pretrains on texts for a step; what was printed before the step, and the MLflow run."""
    from headway.config.loading import validate
    from headway.display import Display

    def pretrain(texts: list[str], max_length: int) -> tuple[str, Any]:
        source = tmp_path / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        corpus = {"source": str(source), "vocab_size": 300, "max_length": max_length}
        settings = {"corpus": corpus, "model": tiny_shape, "steps": 1, "batch_size": 4}
        context = replace(make_context("pretrain"), display=Display())
        run_id = run_pretrain(validate(PretrainConfig, settings), context).summary["mlflow_run_id"]
        return capsys.readouterr().out.partition("step 0/1")[0], context.tracking.client.get_run(run_id)

    return pretrain


def test_what_pairs_leave_out_is_told_before_training_and_logged(told, texts):
    said, run = told(texts, max_length=20)
    fraction = run.data.metrics["truncated_fraction"]
    assert fraction > 0.05
    assert f"pairs of at most 20 tokens leave out {fraction:.1%} of the text\n" in said
    assert "one sentence" not in said


def test_texts_of_one_sentence_are_told_of_in_one_line_before_training(told, texts):
    alone = [sentence for text in texts for sentence in text.split(". ")[:1]]
    said, _ = told(alone, max_length=32)
    [line] = [line for line in said.splitlines() if "one sentence" in line]
    assert "100% of the rows are one sentence: each is paired with its own second half or the end" in line
