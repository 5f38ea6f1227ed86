"""What can be known to be wrong with a sweep before anything is prepared or trained for it."""

from __future__ import annotations

from headway.config.base import ConfigError
from headway.config.mistakes import check_measure
from headway.config.pretrain import PretrainConfig
from headway.config.sweep import COSTS, SweepConfig
from headway.config.training import TrainingConfig
from headway.sweeps.pbt import can_change
from headway.sweeps.search.space import (
    Space,
    check_first_points,
    check_search,
    grid_points,
    parse_search,
    trial_settings,
)


def check_sweep(config: SweepConfig) -> None:
    """Refuse a search or a metric that no trial could run with or measure.

    Raises:
        ConfigError: one line that names the setting.
    """
    config_class = config.trained_class
    space = parse_search(config.search, config_class)
    if config.pretrain is not None:
        same = ["corpus", "workers", *(["model"] if isinstance(config.pretrain.get("model"), str) else [])]
        shared, name = config.pretrain, "pretrain"
    else:
        same = ["model", "task", "seeds", "folds", "workers"]
        shared = {"model": config.model, "task": config.task} | config.finetune
        name = "finetune"
    for path in space:
        if path.partition(".")[0] in same:
            raise ConfigError(f"search.{path}: all trials of a sweep have the same; run a sweep for each")
    if config.algorithm == "grid":
        grid_points(space)
    check_search(space, config_class, shared)
    _check_first_points(config, space)
    training = trial_settings(config_class, shared, {})
    if isinstance(training.workers, tuple):
        raise ConfigError(f"{name}.workers: {list(training.workers)}; a trial has a fixed number of them")
    if config.scheduler.name == "pbt":
        _check_pbt(space, training, name)
    _check_metrics(config, training)


def _check_first_points(config: SweepConfig, space: Space) -> None:
    check_first_points(config.first_points, space)
    if config.algorithm != "grid" and len(config.first_points) > config.samples:
        raise ConfigError(f"first_points: {len(config.first_points)} are more than samples, {config.samples}")


def _check_pbt(space: Space, training: TrainingConfig, name: str) -> None:
    """Refuse settings that a trial cannot take over from another one while it trains."""
    if training.workers:
        raise ConfigError(
            f"{name}.workers: pbt pauses and clones trials; with workers, set another scheduler"
        )
    for setting in ("best_by", "early_stopping_patience"):
        if getattr(training, setting) is not None:
            raise ConfigError(
                f"{name}.{setting}: pbt trials continue from each other and keep their last model; "
                "set another scheduler"
            )
    for path in space:
        if not can_change(path):
            raise ConfigError(
                f"search.{path}: pbt changes settings while a trial trains, and this one has to stay; set "
                "another scheduler"
            )
        if path == "batch_size" and training.steps is None:
            raise ConfigError(
                f"search.batch_size: pbt needs trials of the same length; set {name}.steps, not epochs"
            )


def _check_metrics(config: SweepConfig, training: TrainingConfig) -> None:
    trained = training if isinstance(training, PretrainConfig) else config.task
    assert trained is not None
    for metric in [config.metric] if isinstance(config.metric, str) else config.metric or []:
        check_measure("metric", metric, [*trained.measures, *COSTS])
