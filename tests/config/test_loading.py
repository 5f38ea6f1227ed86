"""YAML and overrides into settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.config.base import ConfigError
from headway.config.loading import (
    apply_overrides,
    load_config,
    load_pipeline,
    parse_yaml,
    read_yaml,
    set_path,
)
from headway.config.pretrain import PretrainConfig

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-3", 0.004),
        ("1e5", 100000.0),
        ("-2.5E-4", -0.00025),
        (".5e1", 5.0),
        ("1.5", 1.5),
        ("12", 12),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'4e-3'", "4e-3"),
        ("v1e-3", "v1e-3"),
        ("true", True),
        ("[adamw, 1e-3]", ["adamw", 0.001]),
        ("loguniform(1e-4, 3e-3)", "loguniform(1e-4, 3e-3)"),
    ],
)
def test_scientific_notation_is_a_number_as_in_json(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_reach_into_groups_and_leave_the_original_alone():
    settings = {"a": {"b": 1, "c": 2}}
    assert apply_overrides(settings, ["a.b=3", "d.e.f=4e-3"]) == {
        "a": {"b": 3, "c": 2},
        "d": {"e": {"f": 0.004}},
    }
    assert settings == {"a": {"b": 1, "c": 2}}


def test_an_override_keeps_every_equals_sign_after_the_first():
    assert apply_overrides({}, ["name=a=b"]) == {"name": "a=b"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set 'steps': write it as path.to.setting=value"),
        ("=3", "--set '=3': write it as path.to.setting=value"),
        ("a=[1, 2", "--set a, line 1: not valid YAML: "),
        ("steps.more=1", "steps.more: 'steps' is 5, not a group of settings"),
    ],
)
def test_a_bad_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"steps": 5}, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_set_path_makes_groups_on_the_way():
    settings: dict = {"empty": None}
    set_path(settings, "empty.deep.value", 1)
    assert settings == {"empty": {"deep": {"value": 1}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [a", "not valid YAML"),
        (b"\xff\xfe\x00", "not a text file (byte 0 is not UTF-8)"),
        (b"- a\n- b\n", "expected a mapping of settings, found a list"),
        (b"", "expected a mapping of settings, found nothing"),
        (b"just words", "expected a mapping of settings, found text"),
        (b"a: b: c\n", "line 1: not valid YAML"),
    ],
)
def test_an_unreadable_file_is_one_line_that_names_it(content, message, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: n\nsteps:\n  tune: {use: corpus}\n  tune: {use: serve}\n",
            "line 4: not valid YAML: 'tune' is there twice",
        ),
        ("name: a\nname: b\n", "line 2: not valid YAML: 'name' is there twice"),
        ("name: n\nsteps: {a: {use: corpus, use: serve}}\n", "line 2: not valid YAML: 'use' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error(text, message, write_yaml):
    with pytest.raises(ConfigError) as caught:
        read_yaml(write_yaml(text))
    assert message in str(caught.value)


def test_keys_of_an_anchor_may_be_overridden(write_yaml):
    text = "common: &common {epochs: 1, seed: 2}\nrun: {<<: *common, seed: 3}\n"
    assert read_yaml(write_yaml(text))["run"] == {"epochs": 1, "seed": 3}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: {a: {use: corpus, source: s}}", "name: missing"),
        ("name: n", "steps: missing"),
        ("{name: n, steps: {}}", "steps: {} is not allowed"),
        ("{name: n, steps: [a]}", r"steps: \['a'\] is not allowed"),
        ("{name: n, steps: {a: 3}}", "steps.a: 3 is not allowed"),
        ("{name: n, steps: {a: {source: s}}}", "a.use: None is not a step"),
        ("{name: n, steps: {a: {use: corpus}}}", "a.source: missing"),
        (
            "{name: n, step: {}, steps: {a: {use: corpus, source: s}}}",
            "step: unknown setting; did you mean 'steps'",
        ),
        ("{name: a/b, steps: {a: {use: corpus, source: s}}}", "name: 'a/b' is not allowed"),
    ],
)
def test_a_mistaken_pipeline_is_told_by_its_field(text, message, write_yaml):
    with pytest.raises(ConfigError, match=message):
        load_pipeline(write_yaml(text))


def test_an_override_begins_with_its_step(write_yaml):
    path = write_yaml("{name: n, steps: {words: {use: corpus, source: s}}}")
    pipeline = load_pipeline(path, ["words.vocab_size=99"])
    assert pipeline.steps["words"]["vocab_size"] == 99
    with pytest.raises(ConfigError, match="--set word: no step has that name; did you mean 'words'"):
        load_pipeline(path, ["word.vocab_size=99"])


def test_a_steps_file_gives_typed_settings(write_yaml):
    path = write_yaml("{corpus: c, optimizer: {name: lamb, learning_rate: 4e-3}}")
    config = load_config(PretrainConfig, path, ["steps=3"])
    assert (config.optimizer.learning_rate, config.steps) == (0.004, 3)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_that_ships_is_valid(path):
    from headway.pipeline.run import check_references

    check_references(load_pipeline(path))
