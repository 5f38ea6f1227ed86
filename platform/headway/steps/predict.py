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
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from headway.cluster import connect
from headway.cluster.capacity import require_processes
from headway.data.atomic import write_atomically
from headway.data.sources.prediction_files import Row, as_table, check_output, read_rows, write_rows
from headway.display import Display
from headway.inference.description import Description, describe
from headway.tracking import Tracking
from headway.tracking.references import model_folder

PART_ROWS = 1024
"""Rows in a part."""
_PACK_TOKENS = {"cpu": 4096, "cuda": 16_384}


def predict_file(
    model: str,
    source: Path,
    output: Path,
    tracking: Tracking,
    display: Display,
    *,
    column: str = "text",
    address: str | None = None,
) -> int:
    """Write a model's answer for every row of a file: a class if it is a classifier, otherwise an embedding.

    Args:
        model: a folder, or models:/name@alias.
        source: .csv, .jsonl, .json or .parquet.
        output: .csv, .jsonl or .parquet, with the columns of `source` and `predicted_label` and
            `predicted_score`, or `embedding`.
        tracking: where `models:/` is looked up.
        display: shows the progress.
        column: the name of the column with the texts.
        address: of the Ray cluster.

    Returns:
        The number of rows.

    Raises:
        ConfigError: the file is bad, rows in it are (one line for each), or there is no such model; nothing
            was computed.
    """
    check_output(output)
    folder = model_folder(model, tracking).resolve()
    description = describe(folder)
    rows = read_rows(source, column, answer_columns(description))
    if output.suffix.lower() == ".parquet":
        as_table(rows)  # raises before anything is computed if columns have mixed types
    parts = Parts.at(output, _key(folder, source, column))
    texts = [row[column] for row in rows]
    missing = parts.missing(len(texts))
    total = -(-len(texts) // PART_ROWS)
    if len(missing) < total:
        display.line(f"{total - len(missing)} of {total} parts were already computed")
    if missing:
        require_processes(1, address, tracking.uri, partial(display.waiting, "predict"))
        for done, (part, answers) in enumerate(_computed(folder, texts, missing), total - len(missing) + 1):
            parts.write(part, answers)
            display.training("predict", done, total, {})
    write_rows(output, rows, parts.answers(total))
    parts.remove()
    return len(rows)


def answer_columns(description: Description) -> tuple[str, ...]:
    """The columns that a model's answers are written to."""
    if "classify" in description.abilities:
        return ("predicted_label", "predicted_score")
    return ("embedding",)


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
    """An encoder in an actor of Ray Data."""

    def __init__(self, folder: str, cores: int) -> None:
        import torch

        from headway.inference.model import EncoderModel
        from headway.inference.tokens import TextTokenizer

        torch.set_num_threads(cores)
        self._model = EncoderModel(Path(folder))
        self._model.record_graphs()
        self._tokenizer = TextTokenizer(Path(folder), self._model.description.max_length)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Answers for the texts of one part."""
        from headway.inference.packing import Operation, Pack

        description = self._model.description
        operation = Operation(description.main_operation)
        sequences = [piece.sequence for piece in self._tokenizer.pieces(batch["text"].to_pylist())]
        outputs: list[Any] = [None] * len(sequences)
        max_tokens = _PACK_TOKENS[self._model.device.type]
        for indices in packed([len(sequence.ids) for sequence in sequences], max_tokens):
            results = self._model.run(operation, Pack.of([sequences[index] for index in indices]))
            for index, result in zip(indices, results, strict=True):
                outputs[index] = result
        return pyarrow.table({"part": batch["part"], **_answers(np.asarray(outputs), description)})


def packed(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, with at most `max_tokens` tokens together."""
    pack: list[int] = []
    tokens = 0
    for index in np.argsort(lengths, kind="stable").tolist():
        if pack and tokens + lengths[index] > max_tokens:
            yield pack
            pack, tokens = [], 0
        pack.append(index)
        tokens += lengths[index]
    yield pack


def _answers(outputs: np.ndarray, description: Description) -> dict[str, Any]:
    if "classify" not in description.abilities:
        flat = pyarrow.array(outputs.ravel(), pyarrow.float32())
        return {"embedding": pyarrow.FixedSizeListArray.from_arrays(flat, outputs.shape[1])}
    best = outputs.argmax(1)
    return {
        "predicted_label": [description.labels[i] for i in best],
        "predicted_score": outputs[np.arange(len(outputs)), best].astype(float),
    }


def _computed(
    folder: Path, texts: Sequence[str], missing: Sequence[int]
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
        fn_constructor_args=(str(folder), 1),
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


def _key(folder: Path, source: Path, column: str) -> str:
    """A text that changes with all that the answers depend on: weights, input file, column, size of parts."""
    digest = xxhash.xxh3_128()
    for file in [*sorted(path for path in folder.iterdir() if path.is_file()), source]:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 22):
                digest.update(chunk)
    return json.dumps({"digest": digest.hexdigest(), "column": column, "rows": PART_ROWS})
