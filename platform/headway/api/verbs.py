"""Headway in Python: the verbs of the command line as functions, which also take data in memory.

```python
import headway

result = headway.pretrain(train_texts, validation_texts, epochs=2, learning_rate=1e-3, batch_size=64)
result.validation_loss, result.model
```

A call that was interrupted is continued by the same call: with equal settings, on the same data and `runs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.api.inputs import finetune_config, plain, pretrain_config, reference
from headway.api.results import TrainedModel
from headway.api.step import make_context, run_step
from headway.config.base import Config
from headway.config.compression.export import ExportConfig, ExportFormat
from headway.config.compression.prune import PruneConfig
from headway.config.compression.quantize import QuantizeConfig
from headway.config.compression.static import StaticConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import load_pipeline, validate
from headway.config.pipeline import PipelineConfig
from headway.config.pretrain import PretrainConfig
from headway.config.serve import ServeConfig
from headway.config.sources import SourceConfig
from headway.config.sweep import SweepConfig
from headway.config.tasks import ClassificationTask, TaskConfig
from headway.display import Display
from headway.runs.context import StepResult

RUNS = Path("runs")


@dataclass(frozen=True)
class Server:
    """A running server; as a context manager, it stops at the end of the block."""

    url: str
    summary: dict[str, Any]

    def stop(self) -> None:
        """Stop the server, and the local Ray cluster if there is one."""
        from headway.cluster import connect
        from headway.serving.deploy import undeploy

        undeploy()
        connect.disconnect()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def pretrain(
    train_data: Any = None,
    validation_data: Any = None,
    *,
    config: PretrainConfig | None = None,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Pretrain an encoder, from scratch or from `model=`.

    Args:
        train_data: texts, a `datasets.Dataset` with a column `text`, or the path of a source; omit it if
            `corpus=` names a prepared corpus.
        validation_data: the same, never trained on; if omitted, a fraction of `train_data` is held out.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        **settings: of `PretrainConfig`; also `learning_rate`, `vocab_size` and `max_length`.

    Raises:
        ConfigError: a setting is unknown or not allowed, or the data has no text.
    """
    context = make_context("pretrain", Path(runs), Display(quiet))
    if config is None:
        config = pretrain_config(train_data, validation_data, settings, context)
    return _trained(run_step("pretrain", config, context))


def finetune(
    train_data: Any = None,
    validation_data: Any = None,
    *,
    model: str | Path | TrainedModel | None = None,
    config: FinetuneConfig | None = None,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Fine-tune an encoder to classify.

    Args:
        train_data: (text, label) pairs, a `datasets.Dataset` with columns `text` and `label`, or the path
            of a source; omit it if `task=` says where the texts are.
        validation_data: the same; if omitted, a fraction of `train_data`.
        model: the encoder: a folder, `models:/name@alias`, or what `pretrain` returned.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        **settings: of `FinetuneConfig`; also `learning_rate` and `max_length`.

    Raises:
        ConfigError: a setting is unknown or not allowed, or the data has no text or label.
    """
    context = make_context("finetune", Path(runs), Display(quiet))
    if config is None:
        config = finetune_config(train_data, validation_data, model, settings, context)
    return _trained(run_step("finetune", config, context))


def sweep(
    model: str | Path | TrainedModel | None = None,
    task: ClassificationTask | Mapping[str, Any] | None = None,
    *,
    config: SweepConfig | None = None,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Search settings of fine-tuning on Ray Tune; returns the best trial's model.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what `pretrain` returned.
        task: where the labelled texts are.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        **settings: of `SweepConfig`.
    """
    context = make_context("sweep", Path(runs), Display(quiet))
    if config is None:
        given = {"model": reference(model) or None, "task": plain(task)}
        config = validate(SweepConfig, settings | {k: v for k, v in given.items() if v is not None})
    result = run_step("sweep", config, context)
    return TrainedModel(Path(result.output), result.summary["best"]["loss"], result.summary)


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


def serve(
    model: str | Path | TrainedModel | None = None,
    *,
    config: ServeConfig | None = None,
    runs: Path | str = RUNS,
    quiet: bool = False,
    **settings: Any,
) -> Server:
    """Serve an encoder over HTTP until `stop()` is called on the result.

    Args:
        model: a folder, `models:/name@alias`, or what `finetune` or `sweep` returned; pass several as
            `models=`.
        config: all settings at once, instead of `settings`.
        runs: folder with the embedded MLflow database.
        quiet: show no output.
        **settings: of `ServeConfig`.
    """
    context = make_context("serve", Path(runs), Display(quiet))
    if config is None:
        given = {} if model is None and "models" in settings else {"model": reference(model)}
        config = validate(ServeConfig, settings | given)
    result = run_step("serve", config, context)
    return Server(result.output, result.summary)


def run(
    pipeline: PipelineConfig | Path | str,
    *,
    overrides: Iterable[str] = (),
    runs: Path | str = RUNS,
    address: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a pipeline; steps that are already done are not run again.

    Args:
        pipeline: its settings, or the path of its YAML file.
        overrides: `step.setting=value`, as with `--set`.
        runs: folder for everything that is made.
        address: of a Ray cluster; if omitted, `RAY_ADDRESS` or a local one.
        quiet: show no progress.

    Returns:
        The summary, as in `<runs>/<name>/summary.json`.
    """
    from headway.pipeline.run import run_pipeline

    if not isinstance(pipeline, PipelineConfig):
        pipeline = load_pipeline(Path(pipeline), overrides)
    return run_pipeline(pipeline, Path(runs), Display(quiet), address)


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


def _trained(result: StepResult) -> TrainedModel:
    summary = result.summary
    loss = summary["validation_loss_end"] if "validation_loss_end" in summary else summary["validation_loss"]
    return TrainedModel(Path(result.output), loss, summary)
