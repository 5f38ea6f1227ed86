"""A step's digest changes with what its result depends on, and with nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import headway
from headway.config.base import INPUT, Config, ConfigError
from headway.config.loading import step_config
from headway.inference import golden
from headway.pipeline.digest import Inputs, input_names, result_settings, step_digest
from headway.tracking import Tracking


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path / "runs", Tracking.at(tmp_path / "runs"))


def digest(settings: dict[str, Any], inputs: Inputs) -> str:
    return step_digest(settings["use"], step_config("step", settings), inputs)


PRETRAIN = {"use": "pretrain", "corpus": "${corpus}", "steps": 10, "batch_size": 64}
FINETUNE = {"use": "finetune", "model": "${pretrain}", "task": "${task}", "epochs": 1, "batch_size": 64}
SWEEP = {"use": "sweep", "model": "${pretrain}", "task": {"source": "rows"}}


@pytest.mark.parametrize("step", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize(
    "setting",
    [
        {"workers": 6},
        {"workers": [2, 4]},
        {"workers": 4, "parallel": {"shard": 2}},
        {"gradient_accumulation": 2},
        {"checkpoint_every": 3},
        {"checkpoint_folder": "s3://bucket/states"},
        {"keep_checkpoints": 5},
        {"keep_best_checkpoints": 5},
        {"log_every": 1},
        {"loader_processes": 2},
        {"compile": True},
        {"activation_checkpointing": True},
    ],
)
def test_operational_settings_stay_out_of_a_digest(step, setting, inputs):
    assert digest(step | setting, inputs) == digest(step, inputs)


@pytest.mark.parametrize("step", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize(
    "setting",
    [{"batch_size": 32}, {"seed": 1}, {"optimizer": {"learning_rate": 0.5}}, {"precision": "fp32"}],
)
def test_what_a_result_depends_on_is_in_its_digest(step, setting, inputs):
    assert digest(step | setting, inputs) != digest(step, inputs)


def test_a_setting_written_out_is_worth_its_default(inputs):
    assert digest(PRETRAIN | {"seed": 0, "schedule": {"name": "linear"}}, inputs) == digest(PRETRAIN, inputs)


@pytest.mark.parametrize(
    "setting", [{"concurrency": 1}, {"cpus_per_trial": 1}, {"finetune": {"workers": 2, "log_every": 1}}]
)
def test_operational_settings_of_a_sweep_and_of_its_trials_stay_out_too(setting, inputs):
    assert digest(SWEEP | setting, inputs) == digest(SWEEP, inputs)
    assert digest(SWEEP | {"finetune": {"epochs": 2}}, inputs) != digest(SWEEP, inputs)


def test_workers_count_if_rows_are_packed_into_batches_of_tokens(inputs):
    """Which rows a step has then depends on the positions of a micro-batch, and they on the workers."""
    packed = PRETRAIN | {"batch_tokens": 4800}
    assert digest(packed | {"workers": 4}, inputs) != digest(packed | {"workers": 2}, inputs)
    assert digest(packed | {"workers": [1, 2]}, inputs) == digest(packed | {"workers": 2}, inputs)


def test_a_digest_is_sixteen_hexadecimal_digits(inputs):
    """It ends the names of folders."""
    assert re.fullmatch("[0-9a-f]{16}", digest(PRETRAIN, inputs))


def test_the_order_in_which_settings_are_written_does_not_count(inputs):
    search = {"optimizer.learning_rate": [1e-4, 1e-3], "epochs": [1, 2]}
    turned = dict(reversed(search.items()))
    assert digest(SWEEP | {"search": search}, inputs) == digest(SWEEP | {"search": turned}, inputs)


def test_what_is_no_path_stands_for_itself(inputs):
    assert inputs.content_of("${corpus}") == "${corpus}"


def test_inputs_are_found_in_groups_of_every_shape():
    class Part(Config):
        file: str = Field(json_schema_extra=INPUT)
        note: str = "no input"

    class Whole(Config):
        listed: list[Part]
        named: dict[str, Part]
        paths: dict[str, str | Path | int] = Field(json_schema_extra=INPUT)

    parts = [Part(file=name) for name in "abcd"]
    paths: dict[str, str | Path | int] = {"one": "e", "two": Path("f"), "three": 3}
    whole = Whole(listed=parts[:2], named={"third": parts[2], "fourth": parts[3]}, paths=paths)
    assert sorted(input_names(whole)) == ["a", "b", "c", "d", "e", "f"]


def test_touching_a_file_changes_nothing_and_another_byte_of_the_same_moment_does(tmp_path, inputs):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("One text.")
    step = {"use": "corpus", "source": str(texts)}
    before = digest(step, inputs)
    os.utime(texts / "a.txt", (1, 1))
    assert digest(step, inputs) == before
    (texts / "a.txt").write_text("Two texts")
    assert digest(step, inputs) != before


def test_the_same_content_is_not_read_twice(tmp_path, inputs, monkeypatch):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "One."}\n')
    with inputs.remembered():
        before = digest({"use": "corpus", "source": str(file)}, inputs)
    assert (tmp_path / "runs" / "contents.json").exists()
    again = Inputs(tmp_path / "runs", Tracking.at(tmp_path / "runs"))
    monkeypatch.setattr("headway.data.contents._read", lambda *_: pytest.fail("read again"))
    assert digest({"use": "corpus", "source": str(file)}, again) == before


@pytest.mark.parametrize(
    "step",
    [
        {"use": "pretrain", "corpus": "${corpus}", "model": "model", "steps": 1},
        {"use": "finetune", "model": "model", "task": "${task}"},
        {"use": "sweep", "model": "model", "task": {"source": "rows"}},
        {"use": "evaluate", "model": "${x}", "beside": {"other": "model"}, "task": {"source": "rows"}},
        {"use": "quantize", "model": "model", "texts": {"source": "rows"}},
        {"use": "static", "model": "model", "texts": {"source": "rows"}},
        {"use": "export", "model": "model", "texts": {"source": "rows"}, "format": "onnx"},
        {"use": "register", "model": "model", "name": "name"},
        {"use": "corpus", "source": "rows", "tokenizer": "model"},
        {"use": "pretrain", "corpus": {"source": "rows", "tokenizer": "model"}, "steps": 1},
        {"use": "sweep", "pretrain": {"corpus": {"source": "rows", "tokenizer": "model"}, "steps": 1}},
    ],
)
def test_the_content_of_a_models_or_a_tokenizers_folder_counts(step, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("{}")
    before = digest(step, inputs)
    Path("model/tokenizer.json").write_text("[]")
    assert digest(step, inputs) != before


def test_what_registering_puts_beside_the_weights_does_not_count(inputs, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    step = {"use": "register", "model": str(model), "name": "name"}
    before = digest(step, inputs)
    (model / golden.FILE).write_text("{}")
    assert digest(step, inputs) == before


@pytest.mark.parametrize(
    "step",
    [
        {"use": "sweep", "pretrain": {"corpus": {"source": "texts.csv"}, "steps": 1}},
        {"use": "pretrain", "corpus": {"source": "texts.csv"}, "steps": 1},
    ],
)
def test_sources_inside_a_sweep_count_and_must_exist(step, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'texts\.csv' does not exist"):
        digest(step, inputs)
    Path("texts.csv").write_text("text\nOne.\n")
    before = digest(step, inputs)
    Path("texts.csv").write_text("text\nTwo.\n")
    assert digest(step, inputs) != before


def test_a_moved_alias_is_another_input(tmp_path, inputs):
    client = Tracking.at(tmp_path / "runs").client
    client.create_registered_model("moving")
    for _ in range(2):
        client.create_model_version("moving", source=str(tmp_path))
    client.set_registered_model_alias("moving", "champion", "1")
    assert inputs.content_of("models:/moving@champion") == "moving/1"
    step = {"use": "finetune", "model": "models:/moving@champion", "task": "${task}"}
    before = digest(step, inputs)
    assert digest(step, inputs) == before
    client.set_registered_model_alias("moving", "champion", "2")
    assert digest(step, inputs) != before


def test_settings_a_result_depends_on_are_those_without_the_mark():
    config = step_config("step", PRETRAIN | {"workers": 4, "model": {"preset": "bert-tiny"}})
    settings = result_settings(config)
    assert "workers" not in settings
    assert settings["model"]["preset"] == "bert-tiny"


@pytest.mark.parametrize("step", [PRETRAIN, FINETUNE, SWEEP])
def test_what_another_version_of_headway_made_is_made_again(step, inputs, monkeypatch):
    before = digest(step, inputs)
    monkeypatch.setattr(headway, "__version__", "0.0.0")
    assert digest(step, inputs) != before
