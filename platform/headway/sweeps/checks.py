"""What can be known to be wrong with a sweep before anything is prepared or trained for it."""

from __future__ import annotations

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.mistakes import check_measure
from headway.config.pretrain import PretrainConfig
from headway.config.sweep import COSTS, SweepConfig
from headway.config.training import TrainingConfig
from headway.sweeps.space import check_search, grid_points, parse_search, trial_settings


def check_sweep(config: SweepConfig) -> None:
    """Refuse a search or a metric that no trial could run with or measure.

    Raises:
        ConfigError: one line that names the setting.
    """
    space = parse_search(config.search)
    config_class: type[TrainingConfig]
    if config.pretrain is not None:
        same = ["corpus", "workers", *(["model"] if isinstance(config.pretrain.get("model"), str) else [])]
        config_class, shared, name = PretrainConfig, config.pretrain, "pretrain"
    else:
        same = ["model", "task", "seeds", "folds", "workers"]
        shared = {"model": config.model, "task": config.task} | config.finetune
        config_class, name = FinetuneConfig, "finetune"
    for path in space:
        if path.partition(".")[0] in same or path in ("distill", "distill.teacher"):
            raise ConfigError(f"search.{path}: all trials of a sweep have the same; run a sweep for each")
    if config.algorithm == "grid":
        grid_points(space)
    check_search(space, config_class, shared)
    training = trial_settings(config_class, shared, {})
    if isinstance(training.workers, tuple):
        raise ConfigError(f"{name}.workers: {list(training.workers)}; a trial has a fixed number of them")
    if config.scheduler == "pbt" and training.workers:
        raise ConfigError(
            f"{name}.workers: pbt pauses and clones trials; with workers, set another scheduler"
        )
    _check_metrics(config, training)


def _check_metrics(config: SweepConfig, training: TrainingConfig) -> None:
    trained = training if isinstance(training, PretrainConfig) else config.task
    assert trained is not None
    for metric in [config.metric] if isinstance(config.metric, str) else config.metric or []:
        check_measure("metric", metric, [*trained.measures, *COSTS])
