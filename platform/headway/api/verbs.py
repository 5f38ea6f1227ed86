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
from headway.api.step import RUNS, make_context, run_step
from headway.config.finetune import FinetuneConfig
from headway.config.loading import load_pipeline, validate
from headway.config.pipeline import PipelineConfig
from headway.config.pretrain import PretrainConfig
from headway.config.serve import ServeConfig
from headway.config.sweep import SweepConfig
from headway.config.tasks import ClassificationTask
from headway.display import Display
from headway.runs.context import StepResult


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


def _trained(result: StepResult) -> TrainedModel:
    summary = result.summary
    loss = summary["validation_loss_end"] if "validation_loss_end" in summary else summary["validation_loss"]
    return TrainedModel(Path(result.output), loss, summary)
