"""The verbs that make a model smaller or faster, as functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.api.inputs import plain, reference
from headway.api.results import TrainedModel
from headway.api.step import RUNS, make_context, run_step
from headway.config.base import Config
from headway.config.compression.export import ExportConfig, ExportFormat
from headway.config.compression.prune import PruneConfig
from headway.config.compression.quantize import QuantizeConfig
from headway.config.compression.static import StaticConfig
from headway.config.loading import validate
from headway.config.sources import SourceConfig
from headway.config.tasks import TaskConfig
from headway.display import Display


def prune(
    model: str | Path | TrainedModel,
    task: TaskConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Cut an encoder down to some of its layers, heads and neurons, for `finetune` to train further.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what `finetune` or `sweep` returned.
        task: what it was fine-tuned on, whose training rows say which parts are important.
        runs: folder for everything that is made.
        quiet: do not show how large and how good the model was and is.
        **settings: of `PruneConfig`.

    Returns:
        A folder with the smaller model.

    Raises:
        ConfigError: a setting is not allowed, or the encoder cannot be pruned so.
    """
    given = {"model": reference(model), "task": str(task) if isinstance(task, Path) else plain(task)}
    config = validate(PruneConfig, settings | {k: v for k, v in given.items() if v is not None})
    return Path(run_step("prune", config, make_context("prune", Path(runs), Display(quiet))).output)


def quantize(
    model: str | Path | TrainedModel,
    texts: SourceConfig | Mapping[str, Any] | str | Path,
    *,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Make an encoder's layers multiply 8-bit integers when it is served on a CPU.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what `finetune` or `sweep` returned.
        texts: similar to those it will be given: the path of a source, or settings of one.
        runs: folder for everything that is made.
        quiet: do not show how close to the original and how fast it is.
        **settings: of `QuantizeConfig`.

    Returns:
        A folder with the same weights, and the scales.

    Raises:
        ConfigError: a setting is not allowed, int8 does not support the encoder, or the result differs too
            much from the original.
    """
    return _made_with_texts("quantize", QuantizeConfig, model, texts, settings, Path(runs), quiet)


def static(
    model: str | Path | TrainedModel,
    texts: SourceConfig | Mapping[str, Any] | str | Path,
    *,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Make a table with a vector for each token out of an encoder.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what a function above returned.
        texts: similar to those it will be given: the path of a source, or settings of one.
        runs: folder for everything that is made.
        quiet: do not show how alike the two find texts, and how fast the table is.
        **settings: of `StaticConfig`.

    Returns:
        A folder with the table, which is served, registered and trained like any other model.

    Raises:
        ConfigError: a setting is not allowed, or there are too few texts.
    """
    return _made_with_texts("static", StaticConfig, model, texts, settings, Path(runs), quiet)


def export(
    model: str | Path | TrainedModel,
    texts: SourceConfig | Mapping[str, Any] | str | Path,
    *,
    format: ExportFormat,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Write a model's graph for ONNX Runtime or OpenVINO, and check it against PyTorch.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what a function above returned.
        texts: similar to those it will be given: the path of a source, or settings of one.
        format: `onnx` or `openvino`.
        runs: folder for everything that is made.
        quiet: do not show how far the graph is from PyTorch, and how fast it is.
        **settings: of `ExportConfig`.

    Returns:
        A folder with the model and its graph.

    Raises:
        ConfigError: a setting is not allowed, an extra is not installed, or the graph differs from PyTorch.
    """
    settings["format"] = format
    return _made_with_texts("export", ExportConfig, model, texts, settings, Path(runs), quiet)


def _made_with_texts(
    verb: str,
    config_class: type[Config],
    model: str | Path | TrainedModel,
    texts: SourceConfig | Mapping[str, Any] | str | Path,
    settings: Mapping[str, Any],
    runs: Path,
    quiet: bool,
) -> Path:
    """The folder that a step makes of a model with the help of texts."""
    source = texts if isinstance(texts, SourceConfig | Mapping) else {"source": str(texts)}
    config = validate(config_class, {**settings, "model": reference(model), "texts": plain(source)})
    return Path(run_step(verb, config, make_context(verb, runs, Display(quiet))).output)
