"""What a mistake in settings is called, and what a user is told to write instead."""

from __future__ import annotations

import pytest

from headway.config.base import ConfigError
from headway.config.loading import step_config
from headway.config.pretrain import PretrainConfig

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
        (PRETRAIN, "lr", "optimizer.learning_rate"),
        (PRETRAIN, "num_train_epochs", "epochs"),
        (PRETRAIN, "per_device_train_batch_size", "batch_size"),
        (PRETRAIN, "gpus", "workers"),
        (PRETRAIN, "mlm_probability", "masking.rate"),
        (FINETUNE, "warmup_ratio", "schedule.warmup"),
        (FINETUNE, "metric_for_best_model", "best_by"),
        (FINETUNE | {"optimizer": {}}, "max_seq_length", "task.max_length"),
        (PRETRAIN, "vocab_sise", "corpus.vocab_size"),
    ],
)
def test_an_unknown_name_is_answered_with_the_setting_that_was_meant(settings, name, meant):
    assert mistake(settings | {name: 1}) == f"x.{name}: unknown setting; did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("name", "place"),
    [("rate", "masking.rate"), ("learning_rate", "optimizer.learning_rate"), ("warmup", "schedule.warmup")],
)
def test_a_name_at_the_wrong_level_is_answered_with_where_it_belongs(name, place):
    assert mistake(PRETRAIN | {name: 1}) == f"x.{name}: unknown setting; it belongs in {place!r}"


SWEEP = {"use": "sweep", "model": "m", "task": {"source": "s"}}
EVALUATE = {"use": "evaluate", "model": "m", "task": {"source": "s"}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            SWEEP | {"finetune": {"optimzer": {"name": "lamb"}}},
            "x.finetune.optimzer: unknown setting; did you mean 'optimizer'?",
        ),
        (
            SWEEP | {"finetune": {"optimizer": {"learning_rat": 1}}},
            "x.finetune.optimizer.learning_rat: unknown setting; did you mean 'learning_rate'?",
        ),
        (
            SWEEP | {"points_to_evaluate": []},
            "x.points_to_evaluate: unknown setting; did you mean 'first_points'?",
        ),
        (SWEEP | {"num_samples": 4}, "x.num_samples: unknown setting; did you mean 'samples'?"),
        (SWEEP | {"time_budget": 60}, "x.time_budget: unknown setting; did you mean 'time_budget_s'?"),
        (SWEEP | {"scheduler": "ashaa"}, "x.scheduler.name: 'ashaa' is not allowed; it should be 'asha'"),
        (SWEEP | {"finetune": {"epochs": -1}}, "x.finetune.epochs: -1 is not allowed; it should be greater"),
        (
            SWEEP | {"finetune": {"batch_size": 2, "workers": 4}},
            "x.finetune: batch_size 2 is less than workers x gradient_accumulation, 4",
        ),
        (
            SWEEP | {"task": {"source": "s", "kind": "regression"}, "finetune": {"label_smoothing": 0.1}},
            "x.finetune: label_smoothing does nothing for a task of kind regression",
        ),
        (
            {"use": "sweep", "pretrain": {"corpus": "c", "model": {"preset": "bert-huge"}}},
            "x.pretrain.model.preset: 'bert-huge' is not allowed",
        ),
        (EVALUATE | {"finetune": {"stepz": 3}}, "x.finetune.stepz: unknown setting; did you mean 'steps'?"),
    ],
)
def test_settings_inside_a_mapping_are_checked_with_the_rest(settings, message):
    assert mistake(settings).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            FINETUNE | {"task": {"source": "s"}, "best_by": "f1_macro"},
            "x: best_by: 'f1_macro' is not measured; did you mean 'macro_f1'?",
        ),
        (
            FINETUNE | {"task": {"source": "s", "kind": "regression"}, "best_by": "accuracy"},
            "x: best_by: 'accuracy' is not measured; known: loss, pearson, rmse, spearman",
        ),
        (
            PRETRAIN | {"objective": ["mlm"], "best_by": "nsp_loss"},
            "x: best_by: 'nsp_loss' is not measured; ",
        ),
    ],
)
def test_a_measure_that_is_none_is_told_with_the_settings(settings, message):
    assert mistake(settings).startswith(message)


def test_one_objective_needs_no_list():
    assert PretrainConfig.model_validate({"corpus": "c", "objective": "mlm"}).objective == ["mlm"]


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
