"""What settings are allowed, and how a mistake is told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import step_config, validate
from headway.config.pipeline import STEP_CONFIGS
from headway.config.pretrain import MaskingConfig, ModelConfig, PretrainConfig
from headway.config.serve import ServeConfig
from headway.config.training import OptimizerConfig, TrainingConfig

MISTAKES = [
    ("pretrain", {"corpus": "c", "stepz": 3}, "x.stepz: unknown setting; did you mean 'steps'?"),
    (
        "pretrain",
        {"corpus": "c", "accumulation": 2},
        "x.accumulation: unknown setting; did you mean 'gradient_accumulation'?",
    ),
    (
        "pretrain",
        {"corpus": "c", "steps": "many"},
        "x.steps: 'many' is not allowed; it should be a valid int",
    ),
    (
        "pretrain",
        {"corpus": "c", "steps": 0},
        "x.steps: 0 is not allowed; it should be greater than or equal",
    ),
    ("pretrain", {}, "x.corpus: missing; it must be set"),
    ("pretrain", {"corpus": "c", "optimizer": {"name": "sgd"}}, "x.optimizer.name: 'sgd' is not allowed"),
    ("pretrain", {"corpus": "c", "optimizer": {"lr": 1}}, "x.optimizer.lr: unknown setting"),
    ("pretrain", {"corpus": "c", "model": {"preset": "bert-huge"}}, "x.model.preset: 'bert-huge' is not"),
    ("pretrain", {"corpus": "c", "model": {"dropout": 1.0}}, "x.model.dropout: 1.0 is not allowed"),
    ("pretrain", {"corpus": "c", "objective": ["nsp"]}, "x: objective ['nsp'] should be [mlm], [mlm, nsp]"),
    ("pretrain", {"corpus": "c", "objective": ["mlm", "mlm"]}, "x: objective ['mlm', 'mlm'] should be"),
    ("pretrain", {"corpus": "c", "steps": 3, "epochs": 1}, "x: give steps or epochs, not both"),
    (
        "pretrain",
        {"corpus": "c", "batch_size": 2, "workers": 4},
        "x: batch_size 2 is less than workers x gradient_acc",
    ),
    (
        "pretrain",
        {"corpus": "c", "batch_tokens": 4096, "gradient_accumulation": 3},
        "x: batch_tokens 4096 should be a multiple of workers x gradient_accumulation, 3",
    ),
    (
        "pretrain",
        {"corpus": "c", "batch_tokens": 4096, "batch_warmup": {"start": 8}},
        "x: give batch_tokens or batch_warmup, not both",
    ),
    (
        "pretrain",
        {"corpus": "c", "batch_tokens": 4096, "phases": [{"max_length": 8, "fraction": 1, "batch_size": 4}]},
        "x: give batch_tokens or the phases' batch_size, not both",
    ),
    (
        "pretrain",
        {
            "corpus": "c",
            "workers": 4,
            "gradient_accumulation": 2,
            "phases": [
                {"max_length": 8, "fraction": 0.9},
                {"max_length": 8, "fraction": 0.1, "batch_size": 7},
            ],
        },
        "x: phases.1.batch_size 7 is less than workers x gradient_accumulation, 8",
    ),
    (
        "pretrain",
        {"corpus": {"sources": {"a": {"corpus": "c"}}}, "steps": 1},
        "x.corpus.sources.a.weight: missing; it must be set",
    ),
    (
        "pretrain",
        {"corpus": {"sources": {"a": {"corpus": {"source": "s", "vocab": 2}, "weight": 1}}}, "steps": 1},
        "x.corpus.sources.a.corpus.vocab: unknown setting; did you mean 'vocab_size'?",
    ),
    (
        "pretrain",
        {"corpus": {"sources": {"a": {"corpus": "c", "weight": 1}}}},
        "x: a mixture of corpora has no epochs: give steps",
    ),
    (
        "pretrain",
        {"corpus": {"sources": {"a": {"corpus": "c", "weight": 1}}}, "steps": 1, "batch_tokens": 64},
        "x: batch_tokens does not go with a mixture of corpora; batch_size does",
    ),
    (
        "pretrain",
        {
            "corpus": {"sources": {"web": {"corpus": "c", "weight": 1}}},
            "steps": 1,
            "phases": [{"fraction": 1, "sources": {"wep": 1}}],
        },
        "x: phases.0.sources.wep: there is no such source; did you mean 'web'?",
    ),
    (
        "pretrain",
        {"corpus": {"source": "s"}, "phases": [{"fraction": 1, "sources": {"web": 1}}]},
        "x: phases.0.sources: corpus is no mixture; give corpus.sources",
    ),
    (
        "pretrain",
        {"corpus": "c", "recipe": "bret"},
        "x.recipe: 'bret' is not allowed; it should be 'modernbert'",
    ),
    ("pretrain", {"corpus": 3}, "x.corpus: 3 is not allowed; it should be a"),
    (
        "pretrain",
        {"corpus": "c", "model": {"presett": "b"}},
        "x.model.presett: unknown setting; did you mean 'preset'?",
    ),
    (
        "pretrain",
        {"corpus": "c", "optimizer": {"zz": 1}},
        "x.optimizer.zz: unknown setting; known: betas, eps, layer",
    ),
    ("pretrain", {"corpus": {"source": "a", "vocab_size": 2}}, "x.corpus.vocab_size: 2 is not allowed"),
    (
        "pretrain",
        {"corpus": "c", "workers": "many"},
        "x.workers: 'many' is not allowed; it should be a valid in",
    ),
    ("pretrain", {"corpus": "c", "workers": [0, 2]}, "x.workers.0: 0 is not allowed"),
    ("pretrain", {"corpus": "c", "workers": [4, 2]}, "x: workers [4, 2] should be [min, max]"),
    ("corpus", {"source": ""}, "x.source: '' is not allowed"),
    ("corpus", {"source": "a", "held_out": 0}, "x.held_out: 0 is not allowed"),
    ("corpus", {"source": "a", "held_out": 1}, "x.held_out: 1 is not allowed"),
    ("finetune", {"model": "m", "task": {"source": "s", "kind": "poetry"}}, "x.task.kind: 'poetry' is not"),
    (
        "finetune",
        {"model": "m", "task": "t", "lora": {}, "workers": 2, "parallel": {"tensor": 2}},
        "x: parallel.tensor 2 does not go with lora; shard does",
    ),
    (
        "finetune",
        {"model": "m", "task": {"source": "s", "kind": "regression"}, "label_smoothing": 0.1},
        "x: label_smoothing does nothing for a task of kind regression, only for: classification, tokens",
    ),
    (
        "finetune",
        {"model": "m", "task": {"source": "s", "kind": "embeddings"}, "class_weights": "balanced"},
        "x: class_weights does nothing for a task of kind embeddings, only for: classification, mu",
    ),
    ("sweep", {"model": "m", "task": {"source": "s"}, "search": {}}, "x.search: {} is not allowed"),
    ("register", {"model": "m", "name": "a b"}, "x.name: 'a b' is not allowed"),
    ("serve", {"model": "m", "port": 70000}, "x.port: 70000 is not allowed"),
    ("serve", {"model": "m", "replicas": [3, 1]}, "x: replicas [3, 1] should be [min, max]"),
    ("serve", {"model": "m", "demo_texts": 3}, "x: demo_texts needs a demo_source"),
    ("dance", {}, "x.use: 'dance' is not a step; allowed: corpus, pretrain"),
]


@pytest.mark.parametrize(("verb", "settings", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_field_value_and_what_is_allowed(verb, settings, message):
    with pytest.raises(ConfigError) as caught:
        step_config("x", {"use": verb} | settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_a_line_each():
    with pytest.raises(ConfigError) as caught:
        validate(CorpusConfig, {"source": "a", "vocab_size": 1, "colour": "red"})
    first, second = str(caught.value).splitlines()
    assert {first.split(":")[0], second.split(":")[0]} == {"vocab_size", "colour"}


@pytest.mark.parametrize("verb", STEP_CONFIGS)
def test_every_step_refuses_a_setting_it_does_not_know(verb):
    with pytest.raises(ConfigError, match="no_such_setting: unknown setting"):
        step_config("x", {"use": verb, "no_such_setting": 1})


def test_settings_do_not_change_after_validation():
    with pytest.raises(ValidationError, match="frozen"):
        OptimizerConfig().learning_rate = 1.0  # type: ignore[misc]


def test_a_run_lasts_its_steps_or_its_epochs_or_one_epoch():
    assert TrainingConfig(steps=7).total_steps(rows=1000) == 7
    assert TrainingConfig(epochs=2.5, batch_size=10).total_steps(rows=100) == 25
    assert TrainingConfig(batch_size=10).total_steps(rows=95) == 10
    assert TrainingConfig(batch_size=64).total_steps(rows=3) == 1


def test_epochs_with_batch_warmup_are_of_rows_not_of_steps():
    warmup = {"start": 4, "fraction": 0.5}
    config = TrainingConfig(epochs=3, batch_size=12, batch_warmup=warmup)
    steps = config.total_steps(rows=1000)
    assert steps == pytest.approx(3000 / (0.5 * 8 + 0.5 * 12), abs=1)  # at first 8 rows a step in the mean


class TokenRows:
    """Rows of which an epoch fills 5 micro-batches and a half."""

    rows = 1000

    def steps_an_epoch(self, parts: int) -> float:
        return 5.5 / parts


def test_steps_of_so_many_tokens_follow_from_what_an_epoch_fills():
    assert TrainingConfig(batch_tokens=4096, steps=7).total_steps(TokenRows()) == 7
    assert TrainingConfig(batch_tokens=4096, epochs=10).total_steps(TokenRows()) == 55
    assert (
        TrainingConfig(batch_tokens=4096, epochs=10, gradient_accumulation=2).total_steps(TokenRows()) == 28
    )
    assert TrainingConfig(batch_size=10).total_steps(TokenRows()) == 100


def test_a_shape_departs_from_its_preset_only_where_set():
    assert ModelConfig(preset="bert-tiny").shape_overrides() == {}
    assert ModelConfig(hidden_size=64).shape_overrides() == {"hidden_size": 64}


def test_a_number_of_replicas_stands_for_least_and_most():
    assert ServeConfig(model="m", replicas=2).replicas == (2, 2)
    assert ServeConfig(model="m", replicas=(1, 4)).replicas == (1, 4)


def test_finetuning_has_defaults_of_its_own():
    assert FinetuneConfig(model="m", task="t").optimizer.learning_rate == 2e-4
    assert PretrainConfig(corpus="c").optimizer.learning_rate == 1e-3


def test_a_recipe_fills_in_what_is_not_set():
    settings = {"corpus": "c", "recipe": "modernbert", "steps": 1000, "masking": {"whole_words": True}}
    config = validate(PretrainConfig, settings | {"optimizer": {"learning_rate": 1e-4}})
    assert config.masking == MaskingConfig(rate=0.3, whole_words=True)
    assert config.optimizer.learning_rate == 1e-4 and config.optimizer.betas == (0.9, 0.98)
    assert config.schedule.name == "wsd" and config.objective == ["mlm"]
    assert config.learning_rate_scales(1000) == [(0, 1.0), (850, 0.375), (975, 0.375)]
    # Every phase has as many tokens in a step.
    assert {
        phase.max_length * (phase.batch_size or config.batch_size)
        for phase in config.phases
        if phase.max_length is not None
    } == {1024 * 4608}
