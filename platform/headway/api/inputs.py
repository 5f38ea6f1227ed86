"""Turns what Python callers pass (keywords, texts in memory, trained models) into typed settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.api.results import TrainedModel
from headway.config.base import Config
from headway.config.corpus import CorpusConfig
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.pretrain import PretrainConfig
from headway.config.tasks import ClassificationTask
from headway.data.sources.documents import Document
from headway.runs.context import Context


def pretrain_config(
    train: Any, validation: Any, settings: dict[str, Any], context: Context
) -> PretrainConfig:
    """Settings of `pretrain` for texts in memory, which are prepared here, for a path, or for neither.

    A model to continue may be a path, or what an earlier training returned.

    Raises:
        ConfigError: a setting is unknown or not allowed, or the data has no text.
    """
    settings = _with_learning_rate(settings)
    if isinstance(settings.get("model"), Path | TrainedModel):
        settings["model"] = reference(settings["model"])
    corpus = {key: settings.pop(key) for key in list(settings) if key in CorpusConfig.model_fields}
    if train is None:
        return validate(PretrainConfig, settings | ({"corpus": corpus} if corpus else {}))
    if isinstance(train, str | Path):
        return validate(PretrainConfig, settings | {"corpus": corpus | {"source": str(train)}})
    corpus_config = validate(CorpusConfig, {"source": "memory"} | corpus)
    # Everything else is checked before anything is written.
    validate(PretrainConfig, settings | {"corpus": "memory"})
    from headway.data.corpus.prepare import prepare_corpus
    from headway.data.sources.memory import documents_in_memory, split_in_memory

    documents = documents_in_memory(train, "train_data", labelled=False)
    held_out = None
    if validation is not None:
        held_out = documents_in_memory(validation, "validation_data", labelled=False)
    train_side, held_out_side = split_in_memory(documents, held_out, corpus_config.held_out)
    prepared = prepare_corpus(train_side, held_out_side, corpus_config, context.stores / "corpora")
    return validate(PretrainConfig, settings | {"corpus": str(prepared.folder)})


def finetune_config(
    train: Any, validation: Any, model: Any, settings: dict[str, Any], context: Context
) -> FinetuneConfig:
    """Settings of `finetune`, likewise; its texts have labels.

    Raises:
        ConfigError: a setting is unknown or not allowed, or the data has no text or label.
    """
    settings = _with_learning_rate(settings) | {"model": reference(model)}
    max_length = settings.pop("max_length", ClassificationTask.model_fields["max_length"].default)
    if train is None:
        task = settings.pop("task", None)
        return validate(FinetuneConfig, settings | ({"task": plain(task)} if task is not None else {}))
    if isinstance(train, str | Path):
        return validate(FinetuneConfig, settings | {"task": {"source": str(train), "max_length": max_length}})
    validate(FinetuneConfig, settings | {"task": "memory"})
    from headway.data.corpus.tokenizer import load_tokenizer
    from headway.data.sources.memory import documents_in_memory
    from headway.data.sources.splitting import drop_duplicates
    from headway.tasks.classification import Classification
    from headway.tasks.item import Item
    from headway.tasks.preparation import check_splits, prepare_task
    from headway.tasks.splitting import Side, split_rows
    from headway.tracking.references import model_folder

    def items(documents: list[Document]) -> list[Item]:
        return [Item([d.text], d.label, [d.text], d.origin, [str(d.label)]) for d in documents]

    documents = documents_in_memory(train, "train_data", labelled=True)
    if validation is None:
        fraction = ClassificationTask.model_fields["validation"].default
        splits = split_rows(items(drop_duplicates(documents)), [Side("validation", fraction, "held-out")])
    else:
        given = documents_in_memory(validation, "validation_data", labelled=True)
        splits = {"train": items(documents), "validation": items(given)}
    splits["test"] = splits["validation"]
    check_splits(Classification, splits, "train_data")
    tokenizer = load_tokenizer(model_folder(settings["model"], context.tracking))
    task = prepare_task(splits, tokenizer, context.stores / "tasks", max_length=max_length)
    return validate(FinetuneConfig, settings | {"task": str(task.folder)})


def _with_learning_rate(settings: dict[str, Any]) -> dict[str, Any]:
    """Accept `learning_rate=`, which most libraries call it, for `optimizer.learning_rate`."""
    if "learning_rate" not in settings:
        return dict(settings)
    rest = {key: value for key, value in settings.items() if key != "learning_rate"}
    return rest | {
        "optimizer": plain(rest.get("optimizer") or {}) | {"learning_rate": settings["learning_rate"]}
    }


def reference(model: Any) -> str:
    """The folder or name of a model; empty for none."""
    if isinstance(model, TrainedModel):
        return str(model.path)
    return "" if model is None else str(model)


def plain(settings: Any) -> Any:
    """Typed settings as a mapping of those that were set; anything else unchanged."""
    if isinstance(settings, Config):
        return settings.model_dump(mode="json", exclude_unset=True)
    return settings
