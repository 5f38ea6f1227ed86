"""Documents from data in memory: a list of texts, a list of (text, label) pairs, or a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headway.config.base import ConfigError
from headway.data.sources.documents import Document, documents_of_dataset
from headway.data.sources.splitting import drop_duplicates, split_documents


def documents_in_memory(data: Any, name: str, labelled: bool) -> list[Document]:
    """The documents in `data` that contain more than white space.

    Args:
        data: texts, or (text, label) pairs if `labelled`, or a data set with columns `text` and `label`.
        name: of the argument, for messages.
        labelled: whether every text needs a label.

    Raises:
        ConfigError: an item is not a text or has no label, or there is no text at all.
    """
    if hasattr(data, "features"):
        documents = list(documents_of_dataset(data, "text", "label" if labelled else None, name))
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        documents = [_document(item, f"{name}[{index}]", labelled) for index, item in enumerate(data)]
    else:
        raise ConfigError(f"{name}: {type(data).__name__} is not allowed; give a list or a datasets.Dataset")
    texts = [document for document in documents if document.text.strip()]
    if not texts:
        raise ConfigError(f"{name}: holds no text")
    return texts


def _document(item: Any, origin: str, labelled: bool) -> Document:
    if labelled:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ConfigError(f"{origin}: {item!r:.60} is not a (text, label) pair")
        text, label = item
        if label is None or label == "":
            raise ConfigError(f"{origin}: no label")
    else:
        text, label = item, None
    if not isinstance(text, str):
        raise ConfigError(f"{origin}: {type(text).__name__} is not a text")
    return Document(text, None if label is None else str(label), origin)


def split_in_memory(
    documents: list[Document], held_out: list[Document] | None, fraction: float
) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents; if none are given, a fraction of the training documents is held out.

    Raises:
        ConfigError: there are too few distinct documents to hold one out.
    """
    if held_out is not None:
        return documents, held_out
    kept, taken = split_documents(drop_duplicates(documents), fraction)
    if not kept or not taken:
        raise ConfigError(
            f"train_data: {len(documents)} text(s) are too few to hold some out; give validation_data"
        )
    return kept, taken
