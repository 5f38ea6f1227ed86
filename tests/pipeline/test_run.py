"""Steps run once for the same inputs, in order, and again only where something they depend on changed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from headway.config.base import ConfigError
from headway.config.pipeline import PipelineConfig
from headway.display import Display
from headway.engine.training.trainer import Trainer
from headway.pipeline.run import cached_result, check_references, run_pipeline
from headway.runs.context import StepResult
from headway.tracking import Tracking

run_trainer = Trainer.run


@pytest.fixture
def settings(labelled_file: Path, tiny_shape: dict[str, Any]) -> dict[str, Any]:
    """A pipeline without Ray: two corpora, and an encoder on the first of them."""
    return {
        "name": "small",
        "steps": {
            "words": {"use": "corpus", "source": str(labelled_file), "vocab_size": 200, "max_length": 32},
            "other": {"use": "corpus", "source": str(labelled_file), "vocab_size": 100, "max_length": 32},
            "encoder": {
                "use": "pretrain",
                "corpus": "${words}",
                "model": tiny_shape,
                "steps": 2,
                "batch_size": 8,
            },
        },
    }


@pytest.fixture
def root(runs: Path, request: pytest.FixtureRequest) -> Path:
    """A `runs` folder of the test's own, with the MLflow database that all tests share."""
    # Making that database takes seconds; a link to it is not told apart from the file.
    folder = runs / "pipelines" / request.node.name
    folder.mkdir(parents=True)
    (folder / "mlflow.db").symlink_to(runs / "mlflow.db")
    return folder


def run(settings: dict[str, Any], root: Path) -> dict[str, Any]:
    return run_pipeline(PipelineConfig.model_validate(settings), root, Display(quiet=True))


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_a_second_run_computes_nothing(settings, root, capsys):
    first = run(settings, root)
    before = files(root)
    again = run_pipeline(PipelineConfig.model_validate(settings), root, Display())
    assert first["cached"] == []
    assert again["cached"] == ["words", "other", "encoder"]
    changed = {path for path, stamp in files(root).items() if before.get(path) != stamp}
    assert {path.name for path in changed} <= {"summary.json", ".mlflow.lock", "mlflow.db"}
    lines = capsys.readouterr().out.splitlines()
    assert sum("cached" in line for line in lines) == 3
    for key in ("words", "other", "encoder", "outputs"):
        assert again[key] == first[key]


def test_a_changed_setting_reruns_only_what_depends_on_it(settings, root):
    run(settings, root)
    settings["steps"]["other"]["vocab_size"] = 120
    assert run(settings, root)["cached"] == ["words", "encoder"]
    settings["steps"]["words"]["vocab_size"] = 150
    assert run(settings, root)["cached"] == ["other"]
    settings["steps"]["encoder"]["steps"] = 3
    assert run(settings, root)["cached"] == ["words", "other"]


def test_going_back_to_earlier_settings_finds_what_they_made(settings, root):
    first = run(settings, root)
    settings["steps"]["encoder"]["steps"] = 3
    run(settings, root)
    settings["steps"]["encoder"]["steps"] = 2
    again = run(settings, root)
    assert again["cached"] == ["words", "other", "encoder"]
    assert again["outputs"] == first["outputs"]


def test_a_changed_source_is_read_again(settings, root, tmp_path, labelled_file):
    copy = tmp_path / "texts.jsonl"
    copy.write_bytes(labelled_file.read_bytes())
    settings["steps"]["words"]["source"] = str(copy)
    run(settings, root)
    with copy.open("a") as stream:
        stream.write(json.dumps({"text": "One more text.", "label": "garden"}) + "\n")
    assert run(settings, root)["cached"] == ["other"]


def test_what_was_deleted_is_made_again(settings, root):
    first = run(settings, root)
    model = Path(first["outputs"]["encoder"])
    model.rename(model.with_name("gone"))
    assert run(settings, root)["cached"] == ["words", "other"]
    assert model.is_dir()


def test_a_registered_model_whose_alias_has_moved_is_registered_again(tmp_path):
    tracking = Tracking.at(tmp_path / "runs")
    tracking.client.create_registered_model("moving")
    for _ in range(2):
        tracking.client.create_model_version("moving", source=str(tmp_path))
    tracking.client.set_registered_model_alias("moving", "champion", "1")
    result = StepResult("models:/moving@champion", "version 1", summary={"version": 1})
    (tmp_path / "result.json").write_text(json.dumps(asdict(result)))
    assert cached_result(tmp_path, tracking) == result
    tracking.client.set_registered_model_alias("moving", "champion", "2")
    assert cached_result(tmp_path, tracking) is None


def test_a_step_that_failed_is_gone_on_with(settings, root):
    settings["steps"]["encoder"]["optimizer"] = {"learning_rate": 1e30}
    settings["steps"]["encoder"]["steps"] = 20
    with pytest.raises(Exception, match="not finite"):
        run(settings, root)
    assert not list((root / "small" / "encoder").rglob("result.json"))
    assert not (root / "small" / "summary.json").exists()
    settings["steps"]["encoder"]["optimizer"] = {"learning_rate": 1e-3}
    assert run(settings, root)["cached"] == ["words", "other"]


def test_operational_settings_may_change_in_a_step_that_continues_and_in_one_that_is_done(
    settings, root, monkeypatch
):
    encoder = settings["steps"]["encoder"]
    encoder |= {"steps": 6, "checkpoint_every": 1, "log_every": 1}
    with monkeypatch.context() as patch:
        step = Trainer.train_step

        def fail_in_the_fourth(self, index, *arguments):
            if index == 3:
                raise OSError("the node is lost")
            step(self, index, *arguments)

        patch.setattr(Trainer, "train_step", fail_in_the_fourth)
        with pytest.raises(OSError, match="lost"):
            run(settings, root)
    begun = []

    def noted_run(self):
        begun.append(self.start_step)
        run_trainer(self)

    monkeypatch.setattr(Trainer, "run", noted_run)
    encoder |= {"checkpoint_every": 4, "keep_checkpoints": 1, "gradient_accumulation": 2}
    assert run(settings, root)["cached"] == ["words", "other"]
    assert begun == [3]
    encoder |= {"log_every": 2, "workers": 2}
    assert run(settings, root)["cached"] == ["words", "other", "encoder"]


def test_a_step_that_makes_the_same_again_reruns_nothing_that_refers_to_it(settings, root):
    first = run(settings, root)
    settings["steps"]["words"]["held_out"] = 0.2000001
    again = run(settings, root)
    assert again["cached"] == ["other", "encoder"]
    assert again["outputs"] == first["outputs"]


def test_a_step_that_made_something_else_again_is_not_taken_for_the_same(settings, root):
    first = run(settings, root)
    corpus = Path(first["outputs"]["words"])
    (corpus / "corpus.json").touch()
    assert run(settings, root)["cached"] == ["words", "other", "encoder"]
    (corpus / "another").write_text("more")
    assert run(settings, root)["cached"] == ["words", "other"]


def test_a_second_driver_of_a_step_is_refused_and_the_first_goes_on(settings, root, monkeypatch):
    refused = []

    def second_driver(self):
        with pytest.raises(ConfigError, match="another driver is at work there: process") as error:
            run(settings, root)
        refused.append(str(error.value))
        run_trainer(self)

    monkeypatch.setattr(Trainer, "run", second_driver)
    assert run(settings, root)["cached"] == []
    assert len(refused) == 1
    assert not list(root.rglob("lease.json"))


def test_a_result_is_on_disk_only_after_what_it_vouches_for(settings, root, monkeypatch):
    flushed: list[Path] = []
    fsync = os.fsync

    def noting_fsync(descriptor):
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    model = Path(run(settings, root)["outputs"]["encoder"])
    [result] = [path for path in flushed if path.parent == model.parent and "result.json" in path.name]
    before = flushed[: flushed.index(result)]
    assert before.index(model) < len(before)
    assert {path for path in model.rglob("*") if path.is_file()} <= set(before)
    assert flushed[flushed.index(result) + 1] == model.parent, "its name is on disk, too"


def test_the_summary_is_written_with_the_figures_of_every_step(settings, root):
    summary = run(settings, root)
    assert json.loads((root / "small" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["words"]["vocab_size"] <= 200
    assert summary["encoder"]["validation_loss_end"] > 0
    assert set(summary["wall_seconds"]) == {"words", "other", "encoder"}
    assert summary["outputs"]["encoder"].endswith("/model")


def test_equal_settings_of_two_pipelines_share_a_prepared_corpus(settings, root):
    first = run(settings, root)
    second = run(settings | {"name": "second"}, root)
    assert second["outputs"]["words"] == first["outputs"]["words"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${nothing}", r"encoder: \$\{nothing\} names no earlier step; earlier steps: words, other"),
        ("${encoder}", r"encoder: \$\{encoder\} names no earlier step"),
        ("${later}", r"encoder: \$\{later\} names no earlier step"),
    ],
)
def test_a_reference_to_no_earlier_step_is_refused(reference, message, settings, tmp_path):
    settings["steps"]["encoder"]["corpus"] = reference
    settings["steps"]["later"] = settings["steps"]["words"]
    with pytest.raises(ConfigError, match=message):
        check_references(PipelineConfig.model_validate(settings))
    with pytest.raises(ConfigError, match=message):
        run(settings, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_reference_to_an_output_that_is_not_there_names_those_that_are(settings, root):
    settings["steps"]["encoder"]["corpus"] = "${words.best}"
    with pytest.raises(ConfigError, match="step 'words' has no output 'best'; it has: none"):
        run(settings, root)


def test_a_missing_source_is_refused_before_any_step_runs(settings, tmp_path):
    settings["steps"]["other"]["source"] = str(tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match=r"other\.source: '.*gone\.csv' does not exist"):
        run(settings, tmp_path / "runs")
    assert not os.path.lexists(tmp_path / "runs")
