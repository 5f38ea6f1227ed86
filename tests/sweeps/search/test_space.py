"""Search spaces: whole numbers, conditions, first points."""

from __future__ import annotations

from typing import Any

import pytest

from headway.config.base import ConfigError
from headway.config.compression.compress import CandidateConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.pretrain import PretrainConfig
from headway.config.sweep import SweepConfig
from headway.sweeps.checks import check_sweep
from headway.sweeps.search.domain import Range
from headway.sweeps.search.space import _ways_to, grid_points, parse_search, trial_settings


def checked(search: dict[str, Any], **more: Any) -> SweepConfig:
    settings = {"model": "m", "task": {"source": "s"}, "search": search}
    config = validate(SweepConfig, settings | more)
    check_sweep(config)
    return config


CONDITIONAL = {
    "schedule.decay": {"values": "quniform(0.1, 0.3, 0.1)", "when": {"schedule.name": "wsd"}},
    "schedule.name": ["linear", "wsd", "polynomial"],
    "schedule.power": {"values": [1.0, 2.0], "when": {"schedule.name": ["polynomial"]}},
}


@pytest.mark.parametrize("path", ["batch_size", "layers", "lora.rank", "batch_warmup.start"])
def test_a_setting_that_takes_whole_numbers_is_searched_over_whole_numbers(path):
    space = parse_search({path: "uniform(8, 64)"}, FinetuneConfig)
    domain = space[path].domain
    assert domain == Range(8, 64, quantum=1.0, is_whole=True)
    assert isinstance(domain, Range)
    assert {type(domain.at(number / 50)) for number in range(50)} == {int}


@pytest.mark.parametrize("path", ["optimizer.weight_decay", "epochs", "schedule.power", "lora.alpha"])
def test_a_setting_that_takes_fractions_is_searched_over_fractions(path):
    assert parse_search({path: "uniform(8, 64)"}, FinetuneConfig)[path].domain == Range(8, 64)


def test_whole_numbers_of_pretraining_are_known_too():
    space = parse_search({"model.num_hidden_layers": "uniform(1, 4)"}, PretrainConfig)
    assert space["model.num_hidden_layers"].domain == Range(1, 4, quantum=1.0, is_whole=True)


def test_fractional_bounds_of_a_whole_number_are_refused():
    with pytest.raises(ConfigError, match=r"search.batch_size: the bounds of .* are not whole numbers"):
        checked({"batch_size": "uniform(8, 64.5)"})


def test_a_grid_has_a_setting_only_with_the_values_that_it_needs():
    search = CONDITIONAL | {"schedule.decay": {"values": [0.1, 0.2], "when": {"schedule.name": "wsd"}}}
    points = grid_points(parse_search(checked(search, algorithm="grid").search, FinetuneConfig))
    assert len(points) == 5
    assert {"schedule.name": "linear"} in points
    assert [point["schedule.decay"] for point in points if "schedule.decay" in point] == [0.1, 0.2]
    assert all(("schedule.power" in point) == (point["schedule.name"] == "polynomial") for point in points)


def test_a_condition_may_depend_on_another_and_comes_after_it():
    search = {
        "lora.rank": {"values": "randint(2, 9)", "when": {"lora": [{}]}},
        "lora": {"values": [None, {}], "when": {"frozen_layers": 0}},
        "frozen_layers": [0, 2],
    }
    config = checked(search)
    space = parse_search(config.search, FinetuneConfig)
    assert list(space) == ["frozen_layers", "lora", "lora.rank"]
    settings = trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, {"lora": {}, "lora.rank": 5})
    assert settings.lora is not None and settings.lora.rank == 5
    # The value of the list itself stays as it was written.
    assert space["lora"].domain == [None, {}]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"schedule.decay": {"values": [0.1], "when": {"schedule.nam": "wsd"}}, "schedule.name": ["wsd"]},
            "search.schedule.decay.when: 'schedule.nam' is not searched; did you mean 'schedule.name'?",
        ),
        (
            {"schedule.decay": {"values": [0.1], "when": {"schedule.name": "wds"}}, "schedule.name": ["wsd"]},
            "search.schedule.decay.when.schedule.name: 'wds' is not among its values",
        ),
        (
            {
                "layers": {"values": [1], "when": {"frozen_layers": 1}},
                "frozen_layers": {"values": [1], "when": {"layers": 1}},
            },
            ".when: it depends on itself",
        ),
        (
            {"lora.rank": {"values": [0, 2], "when": {"lora": [{}]}}, "lora": [None, {}]},
            "finetune.lora.rank: 0 is not allowed",
        ),
        ({"layers": {"values": [1]}}, "search.layers.when: missing"),
        ({"layers": {"values": [1], "when": {"seed": 1}, "if": 1}}, "search.layers.if: unknown setting"),
    ],
)
def test_a_condition_that_cannot_hold_is_told_before_any_trial(search, message):
    with pytest.raises(ConfigError) as error:
        checked(search)
    assert message in str(error.value)


def test_conditions_that_no_trial_fulfils_together_are_no_way_to_a_setting():
    """`layers` is searched with either optimizer, but what it needs besides is searched with one only."""
    search = {
        "optimizer.name": ["adamw", "lamb"],
        "frozen_layers": {"values": [0, 2], "when": {"optimizer.name": "adamw"}},
        "layers": {"values": [1, 2], "when": {"frozen_layers": 0, "optimizer.name": ["adamw", "lamb"]}},
    }
    space = parse_search(checked(search).search, FinetuneConfig)
    assert list(_ways_to("layers", space)) == [{"optimizer.name": "adamw", "frozen_layers": 0}]
    assert list(_ways_to("optimizer.name", space)) == [{}]


def test_a_group_that_is_a_value_of_a_search_stays_as_it_was_written():
    group: dict[str, Any] = {}
    trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, {"lora": group, "lora.rank": 5})
    assert group == {}


@pytest.mark.parametrize(
    ("config_class", "shared", "name"),
    [
        (FinetuneConfig, {"model": "m", "task": "t"}, "finetune"),
        (PretrainConfig, {"corpus": "c"}, "pretrain"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_the_settings_it_belongs_to(config_class, shared, name):
    with pytest.raises(ConfigError, match=rf"^{name}\.seed"):
        trial_settings(config_class, shared | {"steps": 5}, {"seed": -1})


def test_a_search_for_a_smaller_model_names_its_own_settings():
    with pytest.raises(ConfigError, match=r"^search\.layers"):
        trial_settings(CandidateConfig, {"finetune": {"model": "m", "task": "t"}}, {"layers": 0})


def test_groups_within_a_group_stay_as_they_were_written_too():
    group: dict[str, Any] = {"model": "m", "task": "t", "lora": {}}
    settings = trial_settings(CandidateConfig, {}, {"finetune": group, "finetune.lora.rank": 5})
    assert settings.finetune.lora is not None and settings.finetune.lora.rank == 5
    assert group["lora"] == {}


def test_all_that_a_first_point_needs_is_told():
    search = {
        "optimizer.name": ["adamw", "lamb"],
        "frozen_layers": [0, 2],
        "layers": {"values": [1, 2], "when": {"optimizer.name": "adamw", "frozen_layers": 0}},
    }
    with pytest.raises(
        ConfigError, match=r"only with optimizer.name: \['adamw'\], frozen_layers: \[0\], which"
    ):
        checked(search, first_points=[{"layers": 1}])


SEARCH = {"optimizer.learning_rate": "loguniform(1e-5, 1e-3)"} | CONDITIONAL


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"optimizer.learning_rat": 1e-4}, "not searched; did you mean 'optimizer.learning_rate'?"),
        ({"optimizer.learning_rate": 1.0}, "first_points.0.optimizer.learning_rate: 1.0 is not in what the"),
        ({"schedule.name": "cosine"}, "first_points.0.schedule.name: 'cosine' is not in what the search has"),
        ({"schedule.decay": 0.1}, "searched only with schedule.name: ['wsd'], which the point should give"),
    ],
)
def test_a_first_point_outside_the_space_is_told_before_any_trial(point, message):
    with pytest.raises(ConfigError) as error:
        checked(SEARCH, first_points=[point])
    assert message in str(error.value)


def test_more_first_points_than_trials_are_refused():
    points = [{"optimizer.learning_rate": 1e-4}] * 3
    with pytest.raises(ConfigError, match="first_points: 3 are more than samples, 2"):
        checked(SEARCH, first_points=points, samples=2)


@pytest.mark.parametrize(
    ("search", "more", "message"),
    [
        (
            {"layers": [1, 2]},
            {},
            "search.layers: pbt changes settings while a trial trains, and this one has",
        ),
        ({"lora.rank": [4, 8]}, {}, "search.lora.rank: pbt changes settings while a trial trains"),
        ({"frozen_layers": [1, 2]}, {}, "search.frozen_layers: pbt changes"),
        ({"epochs": [1, 2]}, {}, "search.epochs: pbt changes"),
        ({"batch_size": [8, 16]}, {"finetune": {"epochs": 2}}, "set finetune.steps, not epochs"),
        ({"optimizer.eps": [1e-6, 1e-8]}, {"finetune": {"best_by": "loss"}}, "finetune.best_by: pbt trials"),
    ],
)
def test_what_a_trial_cannot_take_over_from_another_is_refused_under_pbt(search, more, message):
    with pytest.raises(ConfigError) as error:
        checked(search, scheduler="pbt", **more)
    assert message in str(error.value)
    checked(search, **more)


def test_what_a_trial_can_change_while_it_trains_is_allowed_under_pbt():
    search = {"batch_size": [8, 16], "optimizer.name": ["adamw", "lamb"], "lora.alpha": "uniform(8, 32)"}
    checked(search, scheduler="pbt", finetune={"steps": 10})


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("ashaa", "scheduler.name: 'ashaa' is not allowed; it should be 'asha', 'hyperband'"),
        ({"grace_period": 0}, "scheduler.grace_period: 0 is not allowed"),
        ({"name": "median", "reduction_factor": 2}, "scheduler.reduction_factor: unknown setting"),
        ({"name": "pbt", "quantile_fraction": 0.6}, "scheduler.quantile_fraction: 0.6 is not allowed"),
    ],
)
def test_a_scheduler_that_is_not_set_right_is_told(scheduler, message):
    with pytest.raises(ConfigError) as error:
        checked(SEARCH, scheduler=scheduler)
    assert message in str(error.value)
