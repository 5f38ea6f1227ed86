"""A pipeline is one story in MLflow: what was run, of what it was made, and how good it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

import headway
from headway.tracking import tracking_uri

NAME = "story"


def write_settings(folder: Path, source: Path, shape: dict[str, Any]) -> Path:
    """A pipeline that needs no Ray."""
    task = {"kind": "classification", "source": str(source), "max_length": 48}
    training = {"steps": 4, "batch_size": 8, "optimizer": {"learning_rate": 3e-3}}
    steps = {
        "corpus": {"use": "corpus", "source": str(source), "vocab_size": 300, "max_length": 32},
        "pretrain": {"use": "pretrain", "corpus": "${corpus}", "model": shape, **training},
        "finetune": {"use": "finetune", "model": "${pretrain}", "task": task, **training},
        "other": {"use": "finetune", "model": "${pretrain}", "task": task, **training, "steps": 60},
        "evaluate": {"use": "evaluate", "model": "${finetune}", "task": task},
        "compare": {"use": "evaluate", "model": "${other}", "task": task},
        "register": {"use": "register", "model": "${finetune}", "name": "topics"},
    }
    path = folder / "story.yaml"
    path.write_text(yaml.safe_dump({"name": NAME, "steps": steps}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory, labelled_file, tiny_shape) -> Path:
    """A git repository with a pipeline, which is committed."""
    folder = tmp_path_factory.mktemp("repository")
    write_settings(folder, labelled_file, tiny_shape)
    author = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], [*author, "commit", "-qm", "Begin"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


def run(repository: Path, *overrides: str) -> dict[str, Any]:
    from headway.runs.lineage import provenance

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        provenance.git_facts.cache_clear()
        return headway.run("story.yaml", overrides=overrides, runs=Path("runs"), quiet=True)


@pytest.fixture(scope="module")
def summary(repository) -> dict[str, Any]:
    return run(repository)


@pytest.fixture(scope="module")
def client(repository, summary) -> MlflowClient:
    return MlflowClient(tracking_uri(repository / "runs"))


@pytest.fixture(scope="module")
def found(client) -> dict[str, Any]:
    """All runs, by their names."""
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_a_pipeline_is_one_run_with_its_steps_under_it(found):
    parent = found.pop(NAME)
    try:
        assert "mlflow.parentRunId" not in parent.data.tags
        assert list(found)[::-1] == [
            "corpus", "pretrain", "finetune", "other", "evaluate", "compare", "register",
        ]  # fmt: skip
        for run in found.values():
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert {run.info.status for run in [parent, *found.values()]} == {"FINISHED"}
    finally:
        found[NAME] = parent


def test_every_run_says_what_it_was_made_of(found, repository):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True)
    for name, run in found.items():
        tags = run.data.tags
        assert tags["mlflow.source.git.commit"] == commit.stdout.strip(), name
        assert tags["mlflow.source.git.dirty"] == "false"
        assert tags["mlflow.source.git.branch"] == "main"
        assert tags["headway.version"] == headway.__version__
        for package in ("python", "torch", "ray", "transformers", "mlflow"):
            assert f"{package} " in tags["headway.packages"]
        assert tags["headway.cluster"].startswith("1 node, ")
        assert tags["headway.gpus"]
        assert len(tags["headway.settings_digest"]) == 16
        assert tags["headway.data_digest"]
    digests = {name: run.data.tags["headway.settings_digest"] for name, run in found.items()}
    assert digests["finetune"] != digests["other"], "they differ in their steps"
    data = {name: run.data.tags["headway.data_digest"] for name, run in found.items()}
    assert data["corpus"] == data["pretrain"]
    assert data["finetune"] == data["other"] == data["evaluate"] == data["register"]


def test_the_rows_that_a_run_reads_are_its_inputs(found, labelled_file):
    def inputs(name: str) -> dict[str, tuple[str, int, Any]]:
        return {
            entry.dataset.name: (
                entry.tags[0].value,
                json.loads(entry.dataset.profile)["num_rows"],
                entry.dataset,
            )
            for entry in found[name].inputs.dataset_inputs
        }

    task = inputs("finetune")
    source = labelled_file.name
    assert {name: context for name, (context, _, _) in task.items()} == {
        f"{source}/train": "training",
        f"{source}/validation": "validation",
        f"{source}/test": "test",
    }
    assert sum(rows for _, rows, _ in task.values()) == 120
    corpus = inputs("pretrain")
    assert corpus.keys() == {f"{source}/train", f"{source}/validation"}
    for _, _, dataset in [*task.values(), *corpus.values()]:
        assert Path(mlflow.data.get_source(dataset).load()) == labelled_file
    digests = {dataset.digest for _, _, dataset in [*task.values(), *corpus.values()]}
    assert len(digests) == 5, "other rows, another digest"
    assert {name: data.digest for name, (_, _, data) in inputs("evaluate").items()} == {
        name: data.digest for name, (_, _, data) in task.items()
    }


def test_models_are_ranked_by_their_scores_on_the_same_rows(client, found, summary):
    experiment = found[NAME].info.experiment_id
    data = next(d.dataset for d in found["evaluate"].inputs.dataset_inputs if d.tags[0].value == "test")
    order = {
        "field_name": "metrics.test_accuracy",
        "ascending": False,
        "dataset_name": data.name,
        "dataset_digest": data.digest,
    }
    ranked = client.search_logged_models(
        [experiment], filter_string="model_type = 'classification'", order_by=[order]
    )
    assert summary["compare"]["accuracy"] > summary["evaluate"]["accuracy"]
    runs = {found[name].info.run_id: name for name in ("finetune", "other")}
    assert [runs[m.source_run_id] for m in ranked if m.source_run_id in runs] == ["other", "finetune"]


def test_a_logged_model_refers_to_its_folder(client, found, repository):
    [pretrained] = client.search_logged_models(
        [found[NAME].info.experiment_id], filter_string="name = 'pretrain'"
    )
    assert pretrained.source_run_id == found["pretrain"].info.run_id
    assert found["pretrain"].outputs.model_outputs[0].model_id == pretrained.model_id
    folder = Path(pretrained.tags["headway.folder"])
    assert (folder / "model.safetensors").is_file()
    files = Path(pretrained.artifact_location.removeprefix("file://"))
    assert [path.name for path in files.iterdir()] == ["MLmodel"]
    assert pretrained.params["optimizer.learning_rate"] == "0.003"
    assert {metric.key for metric in pretrained.metrics} >= {"validation_loss", "validation_mlm_loss"}
    assert {metric.dataset_name for metric in pretrained.metrics} == {
        data.dataset.name
        for data in found["pretrain"].inputs.dataset_inputs
        if data.tags[0].value == "validation"
    }


def test_a_registered_version_tells_its_story(client, found, summary):
    version = client.get_model_version_by_alias("topics", "champion")
    assert version.run_id == found["finetune"].info.run_id
    tags = version.tags
    assert tags["test_accuracy"] == f"{summary['evaluate']['accuracy']:.4f}"
    made_of = found["finetune"].data.tags
    for name in ("mlflow.source.git.commit", "headway.data_digest", "headway.version"):
        assert tags[name] == made_of[name]
    card = version.description
    for part in (
        "# topics",
        "3 classes: garden, harbour, kitchen",
        f"| test_accuracy | {summary['evaluate']['accuracy']:.4f} |",
        made_of["headway.data_digest"],
        f"commit `{made_of['mlflow.source.git.commit']}`, clean",
        "headway serve models:/topics@champion",
    ):
        assert part in card
    assert len(card) <= 5000
    logged = client.get_logged_model(tags["headway.model_id"])
    assert logged.name == "finetune", "the same page as the model that was trained"
    assert logged.artifact_location == version.source
    assert "mlflow.model.isExternal" not in logged.tags
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "topics", "version": "1"}]
    assert "artifacts" in {path.path for path in client.list_logged_model_artifacts(logged.model_id)}
    assert "model_card.md" in {file.path for file in client.list_artifacts(found["register"].info.run_id)}


def test_the_parent_has_the_figures_of_all_steps(client, found, summary):
    parent = found[NAME]
    assert parent.data.metrics["evaluate/accuracy"] == summary["evaluate"]["accuracy"]
    assert parent.data.metrics["pretrain/steps"] == 4
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"pipeline.yaml", "summary.json"}


def test_a_second_run_of_finished_steps_leaves_nothing(client, found, repository):
    before = len(client.search_runs([found[NAME].info.experiment_id]))
    again = run(repository)
    assert again["cached"] == list(again["wall_seconds"])
    assert len(client.search_runs([found[NAME].info.experiment_id])) == before


def test_steps_that_were_done_before_are_shown_as_such(client, found, repository):
    """Another learning rate of one step: all others are cached."""
    (repository / "notes.txt").write_text("not tracked")
    (repository / "story.yaml").write_text((repository / "story.yaml").read_text() + "# changed\n")
    summary = run(repository, "other.steps=61")
    [parent, *_] = client.search_runs(
        [found[NAME].info.experiment_id], f"attributes.run_name = '{NAME}'", order_by=["start_time DESC"]
    )
    assert parent.info.run_id != found[NAME].info.run_id
    assert parent.data.tags["mlflow.source.git.dirty"] == "true"
    children = client.search_runs(
        [found[NAME].info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    names = {child.info.run_name: child for child in children}
    cached = {f"{name} (cached)" for name in summary["cached"]}
    assert names.keys() == cached | {"other", "compare"}
    child = names["finetune (cached)"]
    assert child.data.tags["headway.made_by"] == found["finetune"].info.run_id
    assert found["finetune"].info.run_id in child.data.tags["mlflow.note.content"]
    assert not child.data.metrics and not child.data.params
    assert child.info.status == "FINISHED"
