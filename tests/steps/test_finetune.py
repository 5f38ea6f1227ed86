"""The step `finetune`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextClassificationPipeline,
    pipeline,
)

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.tasks import RegressionTask
from headway.data.batches import LabelledBatches
from headway.display import Display
from headway.engine.parallel.worker import Worker
from headway.runs.finetuning import FinetuningJob, task_folder
from headway.steps.finetune import run_finetune
from headway.tasks.task import open_task


def settings(encoder, labelled_file, **more) -> FinetuneConfig:
    base = {
        "model": str(encoder),
        "task": {"source": str(labelled_file), "max_length": 48},
        "batch_size": 8,
        "steps": 3,
        "optimizer": {"learning_rate": 3e-3},
    }
    return FinetuneConfig.model_validate(base | more)


def test_two_ray_workers_finetune(encoder, labelled_file, make_context, runs, ray_cluster):
    config = settings(encoder, labelled_file, workers=2, steps=96, batch_size=16)
    result = run_finetune(config, make_context("finetune-two", runs))
    assert result.summary["validation_loss"] < result.summary["validation_loss_start"]
    assert result.summary["validation_accuracy"] > 0.6
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    assert set(model.config.label2id) == {"garden", "harbour", "kitchen"}


def test_few_labels_are_trained_on_when_asked(encoder, labelled_file, make_context, runs, monkeypatch):
    from headway.runs.finetuning import FinetuningJob

    seen = []
    original = FinetuningJob.batches

    def spy(job):
        train, validation = original(job)
        assert isinstance(train, LabelledBatches)
        seen.append(np.bincount(train.labels).tolist())
        return train, validation

    monkeypatch.setattr(FinetuningJob, "batches", spy)
    config = settings(
        encoder, labelled_file, task={"source": str(labelled_file), "max_length": 48, "labels_per_class": 4}
    )
    run_finetune(config, make_context("finetune-few", runs))
    assert seen
    assert all(counts == [4, 4, 4] for counts in seen)


def test_random_weights_take_nothing_but_the_shape(encoder, labelled_file, make_context, runs):
    pretrained, fresh = (
        run_finetune(
            settings(
                encoder, labelled_file, random_weights=random, steps=1, optimizer={"learning_rate": 1e-9}
            ),
            make_context(f"finetune-random-{random}", runs),
        ).output
        for random in (False, True)
    )
    name = "bert.encoder.layer.0.output.dense.weight"
    given = AutoModelForSequenceClassification.from_pretrained(encoder).state_dict()[name]
    one = AutoModelForSequenceClassification.from_pretrained(pretrained).state_dict()[name]
    other = AutoModelForSequenceClassification.from_pretrained(fresh).state_dict()[name]
    assert float((one - given).abs().max()) < 1e-6
    assert float((other - given).abs().max()) > 1e-2
    assert other.std() == pytest.approx(0.02, rel=0.2)


def entries(context):
    return [json.loads(line) for line in (context.folder / "journal.jsonl").read_text().splitlines()]


def test_the_best_model_by_any_measure_is_kept_and_reported(encoder, labelled_file, make_context, runs):
    """A rate that is far too high ruins what the first steps learnt."""
    config = settings(
        encoder,
        labelled_file,
        steps=24,
        evaluate_every=4,
        best_by="macro_f1",
        schedule={"name": "constant", "warmup": 0.0},
        optimizer={"learning_rate": 2e-2},
    )
    context = make_context("finetune-best", runs)
    result = run_finetune(config, context)
    measured = [
        row["metrics"] for row in entries(context) if row["step"] and "validation_loss" in row["metrics"]
    ]
    best = max(row["validation_macro_f1"] for row in measured)
    assert len(measured) == 6
    assert result.summary["validation_macro_f1"] == best
    # The weights that were kept are those that were measured.
    model = Path(result.output)
    job = FinetuningJob(config, model, task_folder(config.task, model, context))
    found = job.evaluator(Worker())(job.objective())
    assert found["validation_macro_f1"] == pytest.approx(best)
    assert not (context.folder / "best").exists()


def test_a_run_that_gets_no_better_ends_early(encoder, labelled_file, make_context, runs):
    config = settings(
        encoder,
        labelled_file,
        steps=60,
        evaluate_every=2,
        early_stopping_patience=3,
        optimizer={"learning_rate": 1e-9},
        best_by="accuracy",
    )
    context = make_context("finetune-early", runs)
    result = run_finetune(config, context)
    evaluated = [row["step"] for row in entries(context) if "validation_loss" in row["metrics"]]
    assert evaluated == [0, 2, 4, 6, 8]
    assert (Path(result.output) / "model.safetensors").is_file()


def test_seeds_are_trained_side_by_side_and_the_best_is_kept(
    encoder, labelled_file, make_context, runs, ray_cluster, capsys
):
    config = settings(encoder, labelled_file, steps=4, seeds=3, seed=5)
    context = replace(make_context("finetune-seeds", runs), display=Display())
    summary = run_finetune(config, context).summary
    assert "seed-5 step 4/4  seed-6 step 4/4  seed-7 step 4/4" in capsys.readouterr().out
    seeds = summary["seeds"]
    scores = seeds["validation_accuracy"]
    assert len(scores["values"]) == 3
    assert scores["mean"] == pytest.approx(np.mean(scores["values"]))
    assert scores["std"] == pytest.approx(np.std(scores["values"], ddof=1))
    assert summary["validation_accuracy"] == max(scores["values"])
    client = context.tracking.client
    parent = client.get_run(summary["mlflow_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {child.info.run_name for child in children} == {f"finetune-seeds seed-{n}" for n in (5, 6, 7)}
    assert {child.data.tags["headway.data_digest"] for child in children} == {
        parent.data.tags["headway.data_digest"]
    }
    for child in children:
        read = {entry.dataset.name.rsplit("/", 1)[1] for entry in child.inputs.dataset_inputs}
        assert read == {"train", "validation"}
    assert parent.data.metrics["validation_accuracy"] == summary["validation_accuracy"]
    [model] = parent.outputs.model_outputs
    assert client.get_logged_model(model.model_id).tags["headway.folder"] == str(context.folder / "model")
    assert sorted(path.name for path in (context.folder / "variants").iterdir()) == [
        "seed-5",
        "seed-6",
        "seed-7",
    ]
    alone = run_finetune(
        settings(encoder, labelled_file, steps=4, seed=6), make_context("alone", runs)
    ).summary
    assert alone["validation_loss"] == pytest.approx(seeds["validation_loss"]["values"][1], rel=1e-3)


def test_a_copy_of_the_best_seeds_model_that_was_cut_short_is_made_again(
    encoder, labelled_file, make_context, runs, ray_cluster, monkeypatch
):
    config = settings(encoder, labelled_file, steps=1, seeds=2)
    context = make_context("finetune-cut-short", runs)

    def copy_one_file(source, target, **more):
        Path(target).mkdir(exist_ok=True)
        shutil.copy(Path(source) / "config.json", target)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", copy_one_file)
        with pytest.raises(OSError, match="No space left"):
            run_finetune(config, context)
    result = run_finetune(config, context)
    best = context.folder / "variants" / result.summary["seeds"]["best"] / "model"
    names = sorted(path.name for path in best.iterdir())
    assert sorted(path.name for path in Path(result.output).iterdir()) == names


def test_the_best_seed_is_one_whose_score_is_a_number(
    encoder, labelled_file, make_context, runs, ray_cluster, monkeypatch
):
    from headway.steps import finetune

    scores = iter([math.nan, 0.25, 0.5])
    chosen = finetune.chosen_metrics

    def measured(entries, config):
        return chosen(entries, config) | {"validation_accuracy": next(scores, 0.5)}

    monkeypatch.setattr(finetune, "chosen_metrics", measured)
    config = settings(encoder, labelled_file, steps=1, seeds=3)
    result = run_finetune(config, make_context("finetune-nan-seed", runs))
    assert result.summary["seeds"]["best"] == "seed-2"


def test_a_setting_that_does_nothing_for_a_prepared_task_is_refused(encoder, make_context, tmp_path):
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps({"text": f"Text {i}", "label": i}) + "\n" for i in range(40)))
    context = make_context("finetune-prepared")
    task = task_folder(RegressionTask(source=str(path), max_length=32), encoder, context)
    config = FinetuneConfig(model=str(encoder), task=str(task), steps=1, label_smoothing=0.1)
    with pytest.raises(ConfigError, match="label_smoothing does nothing for a task of kind regression"):
        run_finetune(config, context)
    assert not (context.folder / "model").exists()


def test_test_rows_of_their_own_are_scored_once_at_the_end(
    encoder, labelled_file, pairs, make_context, runs, tmp_path
):
    source, texts = tmp_path / "test.jsonl", pairs[::4]
    source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    task = {"source": str(labelled_file), "max_length": 48, "test_source": str(source)}
    config = settings(encoder, labelled_file, task=task)
    context = make_context("finetune-tested", runs)
    result = run_finetune(config, context)
    classifier = TextClassificationPipeline(
        model=AutoModelForSequenceClassification.from_pretrained(result.output),
        tokenizer=AutoTokenizer.from_pretrained(result.output),
    )
    answers = classifier([text for text, _ in texts], truncation=True, max_length=48)
    right = [answer["label"] == label for answer, (_, label) in zip(answers, texts, strict=True)]
    assert result.summary["test"]["accuracy"] == pytest.approx(np.mean(right))
    assert result.headline.endswith(f"; test accuracy {np.mean(right):.4f}")
    history = context.tracking.client.get_metric_history(result.summary["mlflow_run_id"], "test_accuracy")
    assert [metric.value for metric in history] == [pytest.approx(np.mean(right))]
    untested = run_finetune(
        settings(encoder, labelled_file, steps=1), make_context("finetune-untested", runs)
    )
    assert "test" not in untested.summary


def test_folds_give_a_score_for_each_part(encoder, labelled_file, make_context, runs, ray_cluster):
    """That of the model trained on the other parts; together the parts are all rows that are not held out."""
    config, context = settings(encoder, labelled_file, steps=3, folds=3), make_context("finetune-folds", runs)
    found = run_finetune(config, context).summary["cross_validation"]
    assert found["folds"] == 3
    task = open_task(task_folder(config.task, encoder, context))
    rows = task.split("train").joined(task.split("validation"))
    held_out, expected = [], []
    for number in range(3):
        part = rows.fold(number, 3, config.seed)[1]
        folder = context.folder / "variants" / f"fold-{number}" / "model"
        classifier = pipeline("text-classification", str(folder))
        answers = classifier([texts[0] for texts in part.texts], truncation=True, max_length=48)
        expected.append(
            np.mean([a["label"] == label for a, label in zip(answers, part.targets, strict=True)])
        )
        held_out += part.texts
    assert sorted(held_out) == sorted(rows.texts)
    assert found["validation_accuracy"]["values"] == pytest.approx(expected)
    assert found["validation_accuracy"]["mean"] == pytest.approx(np.mean(expected))


def test_lora_and_frozen_layers_leave_the_rest_as_it_was(encoder, labelled_file, make_context, runs):
    before = AutoModelForSequenceClassification.from_pretrained(encoder).state_dict()
    frozen = "bert.encoder.layer.0.output.dense.weight"
    norm = "bert.encoder.layer.1.output.LayerNorm.weight"
    adapted = "bert.encoder.layer.1.output.dense.weight"
    for name, more, same, changed in (
        ("lora", {"lora": {"rank": 2}}, norm, adapted),
        ("frozen", {"frozen_layers": 1}, frozen, adapted),
    ):
        config = settings(encoder, labelled_file, steps=6, **more)
        output = run_finetune(config, make_context(f"finetune-{name}", runs)).output
        after = AutoModelForSequenceClassification.from_pretrained(output).state_dict()
        assert set(after) == set(before)
        assert after[same].equal(before[same])
        assert not after[changed].equal(before[changed])
