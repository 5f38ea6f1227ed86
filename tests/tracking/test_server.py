"""Runs and models in a real MLflow on SQLite."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pandas
import pytest
import torch
import transformers
from mlflow import MlflowClient
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from headway.config.base import ConfigError
from headway.inference.description import describe, kind_of
from headway.inference.predictor import Predictor
from headway.tracking import Tracking, tracking_uri
from mlflow_server import MlflowServer
from waiting import PATIENCE


@pytest.fixture(scope="module")
def tracking(runs) -> Tracking:
    return Tracking.at(runs)


@pytest.fixture(scope="module")
def client(tracking) -> MlflowClient:
    return MlflowClient(tracking.uri)


@pytest.fixture(scope="module")
def version(tracking, classifier) -> int:
    with tracking.run("registry", "register") as run:
        return tracking.register_model(run, classifier, "topics", "champion", "A text.", "label").number


def test_the_environment_names_the_server_or_a_file_under_runs_is_used(tmp_path, monkeypatch):
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(tmp_path) == "http://tracking:5000"
    assert Tracking.at(tmp_path).uri == "http://tracking:5000"


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """Address of an MLflow server that keeps artifacts where no client looks."""
    server = MlflowServer(tmp_path)
    server.start()
    yield server.uri
    server.kill()


def test_weights_that_a_server_hands_out_lie_where_all_machines_see_them(served, tmp_path, classifier):
    """Not in this machine's temporary folder, and not a second time."""
    tracking = Tracking(served, tmp_path / "runs")
    for _ in range(2):
        with tracking.run("registry", "register") as run:
            tracking.register_model(run, classifier, "topics", "champion", "A text.", "label")
        found = tracking.download_weights("models:/topics@champion")
        assert found.is_relative_to(tmp_path / "runs")
        names = {file.name for file in found.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        assert not any(name.startswith(".") for name in names)
        assert tracking.download_weights("models:/topics@champion") == found
        # What is made again under the same name begins with version 1 too, and is another model.
        tracking.client.delete_registered_model("topics")
    assert len(list(found.parent.iterdir())) == 2


def test_a_run_keeps_its_settings_metrics_and_files(tracking, client):
    with tracking.run("tests", "train", {"steps": 3, "optimizer": {"name": "lamb"}}) as run:
        run.log_metrics([(step, {"loss": 1.0 / step, "accuracy": 0.5}) for step in range(1, 1001)])
        run.log_dict({"a": [1]}, "facts.json")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train"
    assert found.data.params == {"steps": "3", "optimizer.name": "lamb"}
    assert found.data.metrics["loss"] == pytest.approx(0.001)
    history = client.get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history][:2] == [(1, 1.0), (2, 0.5)]
    assert len(history) == 1000
    assert [f.path for f in client.list_artifacts(run.run_id)] == ["facts.json"]


def test_a_run_that_raises_is_failed(tracking, client):
    with pytest.raises(RuntimeError), tracking.run("tests", "broken") as run:
        raise RuntimeError
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_a_child_run_knows_its_parent(tracking, client):
    with tracking.run("tests", "sweep") as parent:
        child = tracking.start_run("tests", "trial", {"x": 1}, parent)
        child.close("KILLED")
    found = client.get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert found.info.status == "KILLED"


def test_children_are_found_by_their_token_whatever_they_are_called(tracking):
    with tracking.run("tests", "sweep") as parent:
        named_alike = [tracking.start_run("tests", "trial", None, parent, token=str(n)) for n in range(2)]
        tracking.start_run("tests", "no token", None, parent)
        children = tracking.children(parent)
    assert {token: run.run_id for token, run in children.items()} == {
        "0": named_alike[0].run_id,
        "1": named_alike[1].run_id,
    }


def test_a_registered_model_has_signature_example_tokenizer_and_alias(tracking, client, version):
    import mlflow

    assert tracking.registered_version("models:/topics@champion") == ("topics", str(version))
    assert tracking.registered_version(f"models:/topics/{version}") == ("topics", str(version))
    found = client.get_model_version_by_alias("topics", "champion")
    mlflow.set_tracking_uri(tracking.uri)
    info = mlflow.models.get_model_info(f"models:/topics/{found.version}")
    assert [column.name for column in info.signature.inputs] == ["text"]
    assert [column.name for column in info.signature.outputs] == ["label", "score"]
    assert info.saved_input_example_info is not None
    weights = tracking.download_weights("models:/topics@champion")
    names = {path.name for path in weights.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    # Nothing that runs code when it is loaded.
    assert not [path for path in weights.parent.rglob("*") if path.suffix in {".pkl", ".pt", ".bin"}]


def test_pyfunc_and_transformers_load_it_and_give_the_numbers_of_the_server(
    tracking, version, classifier, pairs
):
    import mlflow

    texts = [text for text, _ in pairs[::9]]
    expected = Predictor(classifier).rows(texts)
    mlflow.set_tracking_uri(tracking.uri)
    loaded = mlflow.pyfunc.load_model("models:/topics@champion")
    answers = loaded.predict(pandas.DataFrame({"text": texts}))
    assert answers["label"].tolist() == [answer["label"] for answer in expected]

    weights = tracking.download_weights("models:/topics@champion")
    model = AutoModelForSequenceClassification.from_pretrained(weights).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**encoded).logits.softmax(-1)
    # Serving computes in bf16 where the processor has it: two decimal digits.
    assert probabilities.max(-1).values.tolist() == pytest.approx([a["score"] for a in expected], abs=0.02)
    assert answers["score"].tolist() == pytest.approx(probabilities.max(-1).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "settings", "columns"),
    [
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            ["labels", "scores"],
        ),
        ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}, ["score"]),
        ("BertForTokenClassification", {}, ["entities"]),
        ("BertForQuestionAnswering", {}, ["answers"]),
        ("BertModel", {}, ["embedding"]),
    ],
)
def test_pyfunc_answers_as_a_server_does_whatever_the_head(
    architecture, settings, columns, tracking, classifier, pairs, tmp_path
):
    import mlflow

    torch.manual_seed(4)
    config = AutoConfig.from_pretrained(classifier, initializer_range=0.5, **settings)
    getattr(transformers, architecture)(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    kind = kind_of(describe(tmp_path))
    with tracking.run("registry", "register") as run:
        tracking.register_model(run, tmp_path, "any", "champion", "A text.", kind)
    mlflow.set_tracking_uri(tracking.uri)
    loaded = mlflow.pyfunc.load_model("models:/any@champion")
    frame = pandas.DataFrame({"text": [text for text, _ in pairs[::30]]})
    if kind == "answers":
        frame["question"] = "Who cooks?"
    answers = loaded.predict(frame)
    assert list(answers) == columns
    questions = list(frame["question"]) if kind == "answers" else None
    expected = Predictor(tmp_path, precision="fp32").rows(list(frame["text"]), questions)
    for row, found in zip(expected, answers.to_dict("records"), strict=True):
        np.testing.assert_equal(found, row)


def test_a_registered_model_loads_where_headway_is_not_installed(tracking, version, tmp_path):
    code = f"""
import sys
import importlib.util, pathlib
sys.path[:] = [place for place in sys.path if not (pathlib.Path(place) / "headway").is_dir()]
assert importlib.util.find_spec("headway") is None
import mlflow
mlflow.set_tracking_uri({tracking.uri!r})
model = mlflow.pyfunc.load_model("models:/topics@champion")
label = model.predict([{{"text": "The cook boils the soup."}}])["label"][0]
assert {str(tracking.root)!r} in sys.modules["headway"].__file__, sys.modules["headway"].__file__
print(label)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] in {"garden", "harbour", "kitchen"}


def test_registering_again_makes_a_new_version_and_moves_the_alias(tracking, client, classifier):
    def register() -> int:
        with tracking.run("registry", "register") as run:
            return tracking.register_model(run, classifier, "again", "champion", "A text.", "label").number

    older, newer = register(), register()
    assert newer == older + 1
    assert tracking.registered_version("models:/again@champion")[1] == str(newer)
    assert client.get_model_version("again", str(older)).version == older


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/topics@nobody", "is not in the registry at sqlite:"),
        ("models:/nothing@champion", "is not in the registry at sqlite:"),
        ("models:/topics/99", "is not in the registry at sqlite:"),
        ("models:/topics", "write models:/name@alias or models:/name/version"),
        ("models:/@champion", "write models:/name@alias or models:/name/version"),
    ],
)
def test_a_model_that_is_not_registered_is_named(uri, message, tracking, version):
    with pytest.raises(ConfigError, match=message) as caught:
        tracking.registered_version(uri)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)
