"""Headway in Python: the verbs of the command line as functions, also on data in memory.

```python
import headway

result = headway.pretrain(train_texts, validation_texts, epochs=2, learning_rate=1e-3, batch_size=64)
result.validation_loss, result.model
```
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from headway.config import (
    ClassificationTask,
    Config,
    ConfigError,
    CorpusConfig,
    FinetuneConfig,
    PipelineConfig,
    PretrainConfig,
    ServeConfig,
    SweepConfig,
)
from headway.config_files import load_pipeline, validate
from headway.data.sources import Document
from headway.display import Display
from headway.steps.context import Context, StepResult

C = TypeVar("C", bound=Config)
RUNS = Path("runs")


@dataclass(frozen=True)
class TrainedModel:
    """What training leaves.

    Attributes:
        path: a folder in transformers' format: weights, configuration and tokenizer.
        validation_loss: of the held-out data, at the end.
        metrics: everything else that was measured.
    """

    path: Path
    validation_loss: float
    metrics: dict[str, Any]

    @cached_property
    def model(self) -> Any:
        """The transformers model."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(self.path, local_files_only=True)
        return getattr(transformers, config.architectures[0]).from_pretrained(
            self.path, local_files_only=True
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        from headway.data.tokenizer import load_tokenizer

        return load_tokenizer(self.path)


@dataclass(frozen=True)
class Server:
    """A running server; a context manager that stops it."""

    url: str
    summary: dict[str, Any]

    def stop(self) -> None:
        """Take the server down, and a local Ray cluster with it."""
        from headway import cluster
        from headway.serving.deploy import undeploy

        undeploy()
        cluster.disconnect()

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
        train_data: texts, a `datasets.Dataset` with a column `text`, or the path of a source; leave it out
            when `corpus=` names a prepared corpus.
        validation_data: likewise, never trained on; a share of `train_data` is held out when left out.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        **settings: of `PretrainConfig`; also `learning_rate`, `vocab_size` and `max_length`.

    Raises:
        ConfigError: a setting that is unknown or not allowed, or data without text.
    """
    context = make_context("pretrain", Path(runs), Display(quiet))
    if config is None:
        config = _pretrain_config(train_data, validation_data, settings, context)
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
            of a source; leave it out when `task=` says where the texts are.
        validation_data: likewise; a share of `train_data` when left out.
        model: the encoder: a folder, `models:/name@alias`, or what `pretrain` returned.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        **settings: of `FinetuneConfig`; also `learning_rate` and `max_length`.

    Raises:
        ConfigError: a setting that is unknown or not allowed, or data without text or label.
    """
    context = make_context("finetune", Path(runs), Display(quiet))
    if config is None:
        config = _finetune_config(train_data, validation_data, model, settings, context)
    return _trained(run_step("finetune", config, context))


def sweep(
    model: str | Path | TrainedModel | None = None,
    task: ClassificationTask | Mapping[str, Any] | None = None,
    *,
    config: SweepConfig | None = None,
    runs: Path | str = RUNS,
    quiet: bool = False,
    resume: bool = False,
    **settings: Any,
) -> TrainedModel:
    """Search fine-tuning settings on Ray Tune; returns the best trial's model.

    Args:
        model: the encoder: a folder, `models:/name@alias`, or what `pretrain` returned.
        task: where the labelled texts are.
        config: all settings at once, instead of `settings`.
        runs: folder for everything that is made.
        quiet: show no progress.
        resume: go on with the newest sweep of the same settings.
        **settings: of `SweepConfig`.
    """
    context = make_context("sweep", Path(runs), Display(quiet))
    if config is None:
        given = {"model": _reference(model) or None, "task": _plain(task)}
        config = validate(SweepConfig, settings | {k: v for k, v in given.items() if v is not None})
    if resume:
        context = resumed_context("sweep", config, context)
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
    """Serve a classifier over HTTP until `stop()` is called on what is returned.

    Args:
        model: a classifier: a folder, `models:/name@alias`, or what `finetune` or `sweep` returned; several
            go into `models=`.
        config: all settings at once, instead of `settings`.
        runs: folder with the embedded MLflow database.
        quiet: show nothing.
        **settings: of `ServeConfig`.
    """
    context = make_context("serve", Path(runs), Display(quiet))
    if config is None:
        given = {} if model is None and "models" in settings else {"model": _reference(model)}
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
    """Run a pipeline; steps that are done already are not run again.

    Args:
        pipeline: its settings, or the path of its YAML file.
        overrides: `step.setting=value`, as after `--set`.
        runs: folder for everything that is made.
        address: of a Ray cluster; `RAY_ADDRESS` or a local one when left out.
        quiet: show no progress.

    Returns:
        The summary, as in `<runs>/<name>/summary.json`.
    """
    from headway.pipeline import run_pipeline

    if not isinstance(pipeline, PipelineConfig):
        pipeline = load_pipeline(Path(pipeline), overrides)
    return run_pipeline(pipeline, Path(runs), Display(quiet), address)


def make_context(verb: str, runs: Path, display: Display, address: str | None = None) -> Context:
    """A step outside any pipeline: its folder is named after the moment, and not made yet."""
    from headway.tracking import Tracking

    folder = runs / verb / time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
    return Context(verb, verb, runs, folder, Tracking.at(runs), display, address)


def resumed_context(verb: str, config: Config, context: Context) -> Context:
    """The context of the newest run of a step outside any pipeline that had the very same settings.

    Raises:
        ConfigError: there is none.
    """
    settings = config.model_dump(mode="json")
    for path in sorted(context.folder.parent.glob(f"*/{verb}.json"), reverse=True):
        if json.loads(path.read_text(encoding="utf-8"))["config"] == settings:
            return replace(context, folder=path.parent)
    raise ConfigError(f"--resume: no {verb} with these settings under {str(context.folder.parent)!r}")


def run_step(verb: str, config: Config, context: Context) -> StepResult:
    """Run one step outside any pipeline, in its own folder."""
    from headway.pipeline import step_function

    context.folder.mkdir(parents=True, exist_ok=True)
    try:
        result = step_function(verb)(config, context)
    except BaseException:
        _remove_if_empty(context.folder)
        raise
    context.display.step(context.step, result.headline)
    return result


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _trained(result: StepResult) -> TrainedModel:
    summary = result.summary
    loss = summary["validation_loss_end"] if "validation_loss_end" in summary else summary["validation_loss"]
    return TrainedModel(Path(result.output), loss, summary)


def _pretrain_config(
    train: Any, validation: Any, settings: dict[str, Any], context: Context
) -> PretrainConfig:
    settings = _with_learning_rate(settings)
    corpus = {key: settings.pop(key) for key in list(settings) if key in CorpusConfig.model_fields}
    if train is None:
        return validate(PretrainConfig, settings | ({"corpus": corpus} if corpus else {}))
    if isinstance(train, str | Path):
        return validate(PretrainConfig, settings | {"corpus": corpus | {"source": str(train)}})
    corpus_config = validate(CorpusConfig, {"source": "memory"} | corpus)
    # Everything else is checked before anything is written.
    validate(PretrainConfig, settings | {"corpus": "memory"})
    from headway.data.corpus import prepare_corpus
    from headway.data.memory import documents_in_memory, split_in_memory

    documents = documents_in_memory(train, "train_data", labelled=False)
    held_out = None
    if validation is not None:
        held_out = documents_in_memory(validation, "validation_data", labelled=False)
    train_side, held_out_side = split_in_memory(documents, held_out, corpus_config.held_out)
    prepared = prepare_corpus(train_side, held_out_side, corpus_config, context.stores / "corpora")
    return validate(PretrainConfig, settings | {"corpus": str(prepared.folder)})


def _finetune_config(
    train: Any, validation: Any, model: Any, settings: dict[str, Any], context: Context
) -> FinetuneConfig:
    settings = _with_learning_rate(settings) | {"model": _reference(model)}
    max_length = settings.pop("max_length", ClassificationTask.model_fields["max_length"].default)
    if train is None:
        task = settings.pop("task", None)
        return validate(FinetuneConfig, settings | ({"task": _plain(task)} if task is not None else {}))
    if isinstance(train, str | Path):
        return validate(FinetuneConfig, settings | {"task": {"source": str(train), "max_length": max_length}})
    validate(FinetuneConfig, settings | {"task": "memory"})
    from headway.data.memory import documents_in_memory, split_in_memory
    from headway.data.tokenizer import load_tokenizer
    from headway.steps.models import model_folder
    from headway.tasks.classification import Classification
    from headway.tasks.preparation import check_splits, prepare_task
    from headway.tasks.task import Item

    documents = documents_in_memory(train, "train_data", labelled=True)
    given: list[Document] | None = None
    if validation is not None:
        given = documents_in_memory(validation, "validation_data", labelled=True)
    share = ClassificationTask.model_fields["validation"].default
    train_side, validation_side = split_in_memory(documents, given, share)

    def items(documents: list[Document]) -> list[Item]:
        return [Item((d.text,), d.label, d.text, d.origin) for d in documents]

    held_out = items(validation_side)
    splits = {"train": items(train_side), "validation": held_out, "test": held_out}
    check_splits(Classification, splits, "train_data")
    tokenizer = load_tokenizer(model_folder(settings["model"], context.tracking))
    task = prepare_task(splits, tokenizer, context.stores / "tasks", max_length=max_length)
    return validate(FinetuneConfig, settings | {"task": str(task.folder)})


def _with_learning_rate(settings: dict[str, Any]) -> dict[str, Any]:
    """`learning_rate=` stands for the optimizer's; everyone writes it so."""
    if "learning_rate" not in settings:
        return dict(settings)
    rest = {key: value for key, value in settings.items() if key != "learning_rate"}
    return rest | {
        "optimizer": _plain(rest.get("optimizer") or {}) | {"learning_rate": settings["learning_rate"]}
    }


def _reference(model: Any) -> str:
    if isinstance(model, TrainedModel):
        return str(model.path)
    return "" if model is None else str(model)


def _plain(settings: Any) -> Any:
    """Typed settings as a mapping of those that were set; anything else as it is."""
    if isinstance(settings, Config):
        return settings.model_dump(mode="json", exclude_unset=True)
    return settings
