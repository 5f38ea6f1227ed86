"""What a mistake in settings is called, and what a user is told to write instead."""

from __future__ import annotations

import pytest

from headway.config.base import ConfigError
from headway.config.loading import step_config

SERVE = {"use": "serve", "model": "m"}
PRETRAIN = {"use": "pretrain", "corpus": "c"}
FINETUNE = {"use": "finetune", "model": "m", "task": "t"}


def mistake(settings: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        step_config("x", settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "name", "meant"),
    [
        (SERVE, "rate", "requests_per_second"),
        (SERVE, "watch", "watch_interval_s"),
        (SERVE, "keys", "api_keys_file"),
        (SERVE, "timeout", "request_timeout_s"),
        (SERVE, "cache", "cache_size"),
        (SERVE, "downscale_delay", "downscale_delay_s"),
        (SERVE, "replica_tokens", "target_queued_tokens"),
        (SERVE, "certificate", "ssl_certfile"),
        (SERVE, "private_key", "ssl_keyfile"),
        (PRETRAIN, "accumulation", "gradient_accumulation"),
        (PRETRAIN, "early_stopping", "early_stopping_patience"),
        (PRETRAIN, "layer_decay", "optimizer.layerwise_lr_decay"),
        (PRETRAIN, "rate", "masking.rate"),
        (PRETRAIN, "learning_rate", "optimizer.learning_rate"),
        (PRETRAIN, "lr", "optimizer.learning_rate"),
        (PRETRAIN, "vocab_sise", "corpus.vocab_size"),
    ],
)
def test_an_unknown_name_is_answered_with_the_setting_that_was_meant(settings, name, meant):
    assert mistake(settings | {name: 1}) == f"x.{name}: unknown setting; did you mean {meant!r}?"


def test_the_settings_of_the_chosen_kind_of_task_are_those_suggested():
    task = {"kind": "question-answering", "source": "s", "question": "q"}
    assert mistake(FINETUNE | {"task": task}) == (
        "x.task.question: unknown setting; did you mean 'question_column'?"
    )


def test_a_name_like_none_is_answered_with_those_beside_it():
    assert mistake(PRETRAIN | {"masking": {"zzz": 1}}) == (
        "x.masking.zzz: unknown setting; known: rate, static, whole_words"
    )


@pytest.mark.parametrize("name", ["NewsTask", "TinyConfig", "str", "int"])
def test_a_users_own_name_stays_in_the_path_whatever_it_looks_like(name):
    settings = {"use": "serve", "models": {name: {"model": "m", "precision": "fp8"}}}
    assert mistake(settings).startswith(f"x.models.{name}.precision: 'fp8' is not allowed")


def test_a_bad_name_is_told_with_the_pattern_it_should_match():
    assert mistake({"use": "serve", "models": {"a b": {"model": "m"}}}) == (
        "x.models.a b: 'a b' is not allowed; it should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$'"
    )


def test_a_group_that_may_be_text_too_is_refused_for_what_is_wrong_inside_it():
    assert mistake(PRETRAIN | {"corpus": {"source": "s", "held_out": 2}}) == (
        "x.corpus.held_out: 2 is not allowed; it should be less than 1"
    )
