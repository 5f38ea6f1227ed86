"""The verb `predict` on files: a model's answers for every row, computed on the cluster's cores by Ray Data.

Rows are computed in parts of fixed size. What each part gave is written beside the output as soon as it is
there, so that a run that was stopped goes on with the parts that are missing.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from headway.cluster import connect
from headway.data.atomic import write_atomically
from headway.data.prediction_files import Row, as_table, check_output, read_rows, write_rows
from headway.display import Display
from headway.inference.description import Description, describe
from headway.tracking import Tracking
from headway.tracking.references import model_folder

PART_ROWS = 1024
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
    """Answer every row of a file: a classifier its class, any other encoder an embedding.

    Args:
        model: a folder, or models:/name@alias.
        source: .csv, .jsonl, .json or .parquet.
        output: .csv, .jsonl or .parquet, with the columns of `source` and `predicted_label` and
            `predicted_score`, or `embedding`.
        tracking: where `models:/` is looked up.
        display: told of every part.
        column: of the texts.
        address: of the Ray cluster.

    Returns:
        How many rows there are.

    Raises:
        ConfigError: a bad file, a line for each bad row, or no such model; nothing was computed.
    """
    check_output(output)
    folder = model_folder(model, tracking).resolve()
    description = describe(folder)
    rows = read_rows(source, column, answer_columns(description))
    if output.suffix.lower() == ".parquet":
        as_table(rows)  # what does not fit is told before anything is computed
    parts = Parts.at(output, _key(folder, source, column))
    texts = [row[column] for row in rows]
    missing = parts.missing(len(texts))
    total = -(-len(texts) // PART_ROWS)
    if len(missing) < total:
        display.line(f"{total - len(missing)} of {total} parts are there already")
    if missing:
        connect.connect(address, tracking.uri)
        for done, (part, answers) in enumerate(_computed(folder, texts, missing), total - len(missing) + 1):
            parts.write(part, answers)
            display.training("predict", done, total, {})
    write_rows(output, rows, parts.answers(total))
    parts.remove()
    return len(rows)


def answer_columns(description: Description) -> tuple[str, ...]:
    """The columns that a model adds."""
    if "classify" in description.abilities:
        return ("predicted_label", "predicted_score")
    return ("embedding",)


class Parts:
    """Answers that are finished, in a folder beside the output: a Parquet file a part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def at(cls, output: Path, key: str) -> Parts:
        """The parts of an output; those of another model, input or column are thrown away."""
        folder = output.with_name(f".{output.name}.parts")
        name = folder / "key"
        if not name.is_file() or name.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            write_atomically(name, key)
        return cls(folder)

    def missing(self, rows: int) -> list[int]:
        """Numbers of the parts that are still to be computed."""
        return [part for part in range(-(-rows // PART_ROWS)) if not self._path(part).is_file()]

    def write(self, part: int, answers: pyarrow.Table) -> None:
        """Keep what a part gave."""
        draft = self._path(part).with_suffix(".draft")
        pyarrow.parquet.write_table(answers, draft)
        draft.replace(self._path(part))

    def answers(self, total: int) -> list[Row]:
        """Of all rows, in their order."""
        return [
            row for part in range(total) for row in pyarrow.parquet.read_table(self._path(part)).to_pylist()
        ]

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self._folder)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06}.parquet"


class Scorer:
    """An encoder in a process of Ray Data's."""

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
        found: list[Any] = [None] * len(sequences)
        most = _PACK_TOKENS[self._model.device.type]
        for places in packed([len(sequence.ids) for sequence in sequences], most):
            results = self._model.run(operation, Pack.of([sequences[place] for place in places]))
            for place, result in zip(places, results, strict=True):
                found[place] = result
        return pyarrow.table({"part": batch["part"], **_answers(np.asarray(found), description)})


def packed(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of sequences of like length, together at most so many tokens."""
    waiting: list[int] = []
    tokens = 0
    for place in np.argsort(lengths, kind="stable").tolist():
        if waiting and tokens + lengths[place] > most:
            yield waiting
            waiting, tokens = [], 0
        waiting.append(place)
        tokens += lengths[place]
    yield waiting


def _answers(found: np.ndarray, description: Description) -> dict[str, Any]:
    if "classify" not in description.abilities:
        flat = pyarrow.array(found.ravel(), pyarrow.float32())
        return {"embedding": pyarrow.FixedSizeListArray.from_arrays(flat, found.shape[1])}
    best = found.argmax(1)
    return {
        "predicted_label": [description.labels[i] for i in best],
        "predicted_score": found[np.arange(len(found)), best].astype(float),
    }


def _computed(
    folder: Path, texts: Sequence[str], missing: Sequence[int]
) -> Iterator[tuple[int, pyarrow.Table]]:
    """(part, its answers), as they are finished."""
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
    """What a process is given of a part."""
    chosen = texts[part * PART_ROWS : (part + 1) * PART_ROWS]
    return pyarrow.table({"part": [part] * len(chosen), "text": chosen})


def _whole(batches: Iterator[pyarrow.Table], rows_of: dict[int, int]) -> Iterator[tuple[int, pyarrow.Table]]:
    """Parts put together again, where Ray Data has cut large ones."""
    pieces: dict[int, list[pyarrow.Table]] = {}
    for table in batches:
        part = table["part"][0].as_py()
        pieces.setdefault(part, []).append(table.drop_columns(["part"]))
        if sum(piece.num_rows for piece in pieces[part]) == rows_of[part]:
            yield part, pyarrow.concat_tables(pieces.pop(part))


def _key(folder: Path, source: Path, column: str) -> str:
    """What the answers depend on: the weights, the texts and the size of parts."""
    digest = xxhash.xxh3_128()
    for file in [*sorted(path for path in folder.iterdir() if path.is_file()), source]:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 22):
                digest.update(chunk)
    return json.dumps({"digest": digest.hexdigest(), "column": column, "rows": PART_ROWS})
