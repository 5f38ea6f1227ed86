"""The step `compress`, on a tiny classifier."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from transformers import AutoModelForSequenceClassification

from headway.config.base import ConfigError
from headway.config.compression.compress import CompressConfig
from headway.config.loading import validate
from headway.config.register import RegisterConfig
from headway.inference.predictor import Predictor
from headway.steps.compress import run_compress
from headway.steps.register import run_register
from headway.sweeps.ledger import Ledger
from headway.tasks.preparation import read_task
from headway.tracking import tracking_uri


@pytest.fixture(scope="module")
def settings(classifier, labelled_file):
    return {
        "model": str(classifier),
        "task": {"source": str(labelled_file), "max_length": 48},
        "target": {"size": "0.6x", "max_quality_loss": "15%"},
        "search": {"layers": [1, 2], "vocabulary": [150, 180]},
        "finetune": {"epochs": 10, "batch_size": 16, "optimizer": {"learning_rate": 3e-3}},
        "calibration_rows": 32,
        "samples": 3,
    }


@pytest.fixture(scope="module")
def searched(settings, runs, ray_cluster):
    """A search whose driver died before the winner was chosen, and as if before a trial's end was kept."""
    from headway.display import Display
    from headway.runs.context import Context
    from headway.steps import compress
    from headway.tracking import Tracking

    folder = runs / "test" / "searched"
    folder.mkdir(parents=True)
    context = Context("test", "searched", runs, folder, Tracking.at(runs), Display(quiet=True))
    config = validate(CompressConfig, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "_findings", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_compress(config, context)
    trials = folder / "trials"
    written = {path: path.stat().st_mtime_ns for path in trials.glob("*/*.json*")}
    (trials / "00002" / "ended.json").unlink()
    return run_compress(config, context), context, written


def test_a_search_that_was_killed_loses_and_repeats_no_trial(searched):
    result, context, written = searched
    trials = Ledger(context.folder / "trials").trials()
    assert [trial.number for trial in trials] == [0, 1, 2] == list(range(result.summary["trials"]))
    assert trials[0].sampled == {}
    changed = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    # The last trial's end is recorded again; what it trained and measured is found.
    assert changed <= {trials[2].journal, trials[2].folder / "ended.json", trials[2].folder / "trial.json"}
    run_id = json.loads((context.folder / "run.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri(context.root))
    experiment = client.get_run(run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    assert sorted(child.info.run_name for child in children) == [f"trial 0000{n}" for n in range(3)]


def test_the_winner_reaches_the_target_and_is_a_model_like_any_other(searched, settings):
    result, _, _ = searched
    summary, chosen = result.summary, result.summary["chosen"]
    assert summary["reached"], result.headline
    assert chosen["ratios"]["size"] <= 0.6
    assert summary["quality_loss"] <= 0.15
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    assert model.config.num_hidden_layers == chosen["values"]["layers"]
    test = read_task(validate(CompressConfig, settings).task)["test"]
    answers = Predictor(Path(result.output)).rows([item.texts[0] for item in test])
    right = [answer["label"] == item.target for answer, item in zip(answers, test, strict=True)]
    assert summary["test"]["compressed"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert set(summary["test"]["original"]) == set(summary["test"]["compressed"])


def test_the_front_is_a_table_and_a_picture_in_mlflow(searched):
    result, context, _ = searched
    run_id = json.loads((context.folder / "run.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri(context.root))
    names = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert {"candidates.md", "candidates.csv", "pareto.png", "model_card.md"} <= names
    text = Path(client.download_artifacts(run_id, "candidates.csv")).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    chosen = result.summary["chosen"]
    [row] = [r for r in rows if (r["candidate"], r["precision"]) == (chosen["name"], chosen["precision"])]
    assert float(row["score"]) == chosen["score"]
    assert row["on_front"] == "True"
    assert {r["candidate"] for r in rows} == {"00000", "00001", "00002"}


def test_the_card_tells_how_it_was_made_and_is_registered_with_it(searched, make_context, runs):
    result, _, _ = searched
    text = (Path(result.output) / "README.md").read_text()
    test = result.summary["test"]
    scores = (test[which]["accuracy"] for which in ("original", "compressed"))
    assert "| held-out accuracy | {:.4f} | {:.4f} |".format(*scores) in text
    for part in ("## How it was made", "size 0.6x", "with the original as the teacher", "were held out"):
        assert part in text
    register = RegisterConfig(model=result.output, name="small")
    registered = run_register(register, make_context("register", runs))
    version = registered.summary["version"]
    described = MlflowClient(tracking_uri(runs)).get_model_version("small", str(version))
    assert "## How it was made" in described.description
    assert described.tags["test_accuracy"] == f"{test['compressed']['accuracy']:.4f}"


def test_if_nothing_reaches_the_target_that_is_said_and_the_closest_is_kept(
    settings, make_context, runs, ray_cluster
):
    strict = {"target": {"size": "0.001x"}, "samples": 1}
    result = run_compress(validate(CompressConfig, settings | strict), make_context("strict", runs))
    assert result.headline.startswith("no candidate reaches the target; taken is the closest to the target")
    assert not result.summary["reached"]
    assert result.summary["chosen"]["values"] == {}
    assert "not reached" in (Path(result.output) / "README.md").read_text()


def test_what_the_model_cannot_give_is_refused_before_anything_is_written(settings, make_context, runs):
    context = make_context("compress-refused", runs)
    for search, message in [
        ({"layers": [1, 3]}, r"^search.layers: 3 is not allowed; the model has 2 layers$"),
        ({"heads": [0]}, r"^search.heads: 0 is not allowed; the model has 2 heads$"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run_compress(validate(CompressConfig, settings | {"search": search}), context)
    assert list(context.folder.iterdir()) == []
