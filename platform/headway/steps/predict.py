"""The verb `predict` on files: computes a model's answer for every row, on the cluster by Ray Data.

Rows are computed in parts of fixed size. The answers of a part are written beside the output as soon as they
are computed, so that a run that was stopped continues with the missing parts.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from headway.cluster import connect
from headway.cluster.capacity import require_processes
from headway.config.base import ConfigError
from headway.data.atomic import write_atomically
from headway.data.sources.prediction_files import Row, as_table, check_output, read_rows, write_rows
from headway.display import Display
from headway.inference.description import Description, describe
from headway.tracking import Tracking
from headway.tracking.references import model_folder

if TYPE_CHECKING:
    from headway.inference.predictor import Kind

PART_ROWS = 1024
"""Rows in a part."""
COLUMNS = {
    **{name: f"predicted_{name}" for name in ("label", "labels", "score", "scores", "entities", "answers")},
    "embedding": "embedding",
}
"""Names in files of what `Predictor.rows` gives."""


def predict_file(
    model: str,
    source: Path,
    output: Path,
    tracking: Tracking,
    display: Display,
    *,
    column: str = "text",
    question: str | None = None,
    address: str | None = None,
) -> int:
    """Write what the model's head answers for every row of a file; an embedding if it has none.

    Args:
        model: a folder, or models:/name@alias.
        source: .csv, .jsonl, .json or .parquet.
        output: .csv, .jsonl or .parquet, with the columns of `source` and those of
            `answer_columns`.
        tracking: where `models:/` is looked up.
        display: shows the progress.
        column: the name of the column with the texts.
        question: that a model which answers questions looks for in each text.
        address: of the Ray cluster.

    Returns:
        The number of rows.

    Raises:
        ConfigError: the file is bad, rows in it are (one line for each), or there is no such model; nothing
            was computed.
    """
    check_output(output)
    folder = model_folder(model, tracking).resolve()
    kind = kind_in_files(describe(folder))
    if (kind == "answers") != (question is not None):
        raise ConfigError("--question: needed by models that answer questions, and by no others")
    rows = read_rows(source, column, answer_columns(kind))
    if output.suffix.lower() == ".parquet":
        as_table(rows)  # raises before anything is computed if columns have mixed types
    parts = Parts.at(output, _key(folder, source, column, question))
    texts = [row[column] for row in rows]
    missing = parts.missing(len(texts))
    total = -(-len(texts) // PART_ROWS)
    if len(missing) < total:
        display.line(f"{total - len(missing)} of {total} parts were already computed")
    if missing:
        require_processes(1, address, tracking.uri, partial(display.waiting, "predict"))
        for done, (part, answers) in enumerate(
            _computed(folder, texts, missing, question), total - len(missing) + 1
        ):
            parts.write(part, answers)
            display.training("predict", done, total, {})
    write_rows(output, rows, parts.answers(total))
    parts.remove()
    return len(rows)


def kind_in_files(description: Description) -> Kind:
    """What rows of files are asked for; they hide no words, so an encoder with that head embeds them."""
    from headway.inference.predictor import kind_of

    kind = kind_of(description)
    return "embedding" if kind == "masks" else kind


def answer_columns(kind: Kind) -> tuple[str, ...]:
    """The columns that the answers of a model of this kind are written to."""
    named = {"label": ("label", "score"), "labels": ("labels", "scores")}
    return tuple(COLUMNS[name] for name in named.get(kind, (kind,)))


class Parts:
    """The answers that are computed so far, in a folder beside the output: a Parquet file for each part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def at(cls, output: Path, key: str) -> Parts:
        """The parts of an output; those of another model, input or column are deleted."""
        folder = output.with_name(f".{output.name}.parts")
        name = folder / "key"
        if not name.is_file() or name.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_atomically(name, key)
        return cls(folder)

    def missing(self, rows: int) -> list[int]:
        """Indices of the parts that are not computed yet."""
        return [part for part in range(-(-rows // PART_ROWS)) if not self._path(part).is_file()]

    def write(self, part: int, answers: pyarrow.Table) -> None:
        """Write the answers of a part."""
        draft = self._path(part).with_suffix(".draft")
        pyarrow.parquet.write_table(answers, draft)
        draft.replace(self._path(part))

    def answers(self, total: int) -> list[Row]:
        """The answers for all rows, in order."""
        return [
            row for part in range(total) for row in pyarrow.parquet.read_table(self._path(part)).to_pylist()
        ]

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06}.parquet"


class Scorer:
    """A model in an actor of Ray Data."""

    def __init__(self, folder: str, cores: int, question: str | None = None) -> None:
        import torch

        from headway.inference.predictor import Predictor

        torch.set_num_threads(cores)
        self._predictor = Predictor(Path(folder), kind_in_files(describe(Path(folder))))
        self._question = question

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Answers for the texts of one part."""
        texts = batch["text"].to_pylist()
        questions = None if self._question is None else [self._question] * len(texts)
        return pyarrow.table({"part": batch["part"], **_table(self._predictor.rows(texts, questions))})


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Answers by their columns."""
    found = {column: [row[name] for row in rows] for name, column in COLUMNS.items() if name in rows[0]}
    if "embedding" in found:
        vectors = np.asarray(found["embedding"])
        flat = pyarrow.array(vectors.ravel(), pyarrow.float32())
        found["embedding"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return found


def _computed(
    folder: Path, texts: Sequence[str], missing: Sequence[int], question: str | None
) -> Iterator[tuple[int, pyarrow.Table]]:
    """Yield (part, its answers) as they are computed."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tables = [part_table(texts, part) for part in missing]
    gpus = connect.available_gpus()
    processes = max(1, min(len(tables), gpus or connect.available_cpus()))
    scored = ray.data.from_arrow(tables).map_batches(
        Scorer,
        fn_constructor_args=(str(folder), 1, question),
        batch_size=None,  # a block is a part
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    rows_of = {part: table.num_rows for part, table in zip(missing, tables, strict=True)}
    yield from _whole(scored.iter_batches(batch_size=None, batch_format="pyarrow"), rows_of)


def part_table(texts: Sequence[str], part: int) -> pyarrow.Table:
    """The texts of a part, as an actor receives them."""
    chosen = texts[part * PART_ROWS : (part + 1) * PART_ROWS]
    return pyarrow.table({"part": [part] * len(chosen), "text": chosen})


def _whole(batches: Iterator[pyarrow.Table], rows_of: dict[int, int]) -> Iterator[tuple[int, pyarrow.Table]]:
    """Yield whole parts: Ray Data may have split large ones."""
    pieces: dict[int, list[pyarrow.Table]] = {}
    for table in batches:
        part = table["part"][0].as_py()
        pieces.setdefault(part, []).append(table.drop_columns(["part"]))
        if sum(piece.num_rows for piece in pieces[part]) == rows_of[part]:
            yield part, pyarrow.concat_tables(pieces.pop(part))


def _key(folder: Path, source: Path, column: str, question: str | None) -> str:
    """A text that changes with all that the answers depend on: weights, input, column, question."""
    digest = xxhash.xxh3_128()
    for file in [*sorted(path for path in folder.iterdir() if path.is_file()), source]:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 22):
                digest.update(chunk)
    return json.dumps(
        {"digest": digest.hexdigest(), "column": column, "question": question, "rows": PART_ROWS}
    )
