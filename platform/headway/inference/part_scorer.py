"""Computes the rows of a part: read, tokenized, computed and written in one process, a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow

from headway.config.base import ConfigError
from headway.data.predictions.inputs import Block, InputFile
from headway.data.predictions.records import Columns, RecordReader, Row, chunks
from headway.data.predictions.survey import Part
from headway.data.predictions.work_folder import WorkFolder
from headway.data.predictions.writing import PartWriter, part_name
from headway.inference.answer_columns import Dtype, columns_of_answers
from headway.inference.description import Kind
from headway.inference.tokens import Piece, TextTooLongError


@dataclass(frozen=True)
class ScoringJob:
    """What all parts have in common.

    Attributes:
        model: folder of the model.
        kind: what is asked of it, see `Predictor`.
        question: that a model which answers questions looks for.
        dtype: of embeddings.
        columns: what rows must have.
        files: plain ones.
        work: where parts are written.
        suffix: of their files.
        headers: of each file, the names of its columns.
        schema: of the rows, if parts are Parquet.
        answers: the columns that are added.
    """

    model: Path
    kind: Kind
    question: str | None
    dtype: Dtype
    columns: Columns
    files: Sequence[InputFile]
    work: WorkFolder
    suffix: str
    headers: Sequence[Sequence[str]]
    schema: pyarrow.Schema | None
    answers: pyarrow.Schema

    @property
    def names(self) -> list[str]:
        """The names of all files' columns, in the order in which they appear."""
        return list(dict.fromkeys(name for header in self.headers for name in header))


class PartScorer:
    """A model that computes parts.

    Args:
        job: what they have in common.
        cores: threads that tokenize and, on a CPU, compute.
    """

    def __init__(self, job: ScoringJob, cores: int = 1) -> None:
        # Read when the first text is tokenized.
        os.environ |= {"TOKENIZERS_PARALLELISM": str(cores > 1).lower(), "RAYON_NUM_THREADS": str(cores)}
        import torch

        from headway.inference.predictor import Predictor

        torch.set_num_threads(cores)
        self._job = job
        self._predictor = Predictor(job.model, job.kind)

    def __call__(self, numbered: tuple[int, Part]) -> int:
        """Compute a part and write its file.

        Args:
            numbered: the part's index, and the part.

        Returns:
            The number of its rows.

        Raises:
            ConfigError: its rows are not those that were surveyed.
        """
        number, part = numbered
        job, done = self._job, 0
        with job.work.writing(part_name(number, job.suffix)) as draft:
            writer = PartWriter(draft, job.names, job.schema, job.answers)
            for rows, pieces in self._tokenized_ahead(part):
                answers = self._predictor.answered([row[job.columns.text] for row in rows], pieces)
                writer.add(rows, columns_of_answers(answers, job.dtype))
                done += len(rows)
            if done != part.rows:
                address = job.files[part.file].address
                raise ConfigError(f"{address}: changed while it was read; run the same command again")
            writer.close()
        return done

    def _tokenized_ahead(self, part: Part) -> Iterator[tuple[list[Row], list[Piece]]]:
        """The chunks of a part; while one is computed, the next is read and tokenized in another thread."""
        file, block = self._job.files[part.file], Block(part.file, part.start, part.end)
        names = list(self._job.headers[part.file]) if file.kind == "csv" and part.start else None
        reader = RecordReader(file, block, self._job.columns, names)
        found = chunks(reader, part.start, self._job.columns.text)

        def following() -> tuple[list[Row], list[Piece]] | None:
            rows = next((chunk.rows for chunk in found if chunk.rows), None)
            return (
                None if rows is None else (rows, self._pieces([row[self._job.columns.text] for row in rows]))
            )

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(following)
            while (chunk := waiting.result()) is not None:
                waiting = pool.submit(following)
                yield chunk

    def _pieces(self, texts: Sequence[str]) -> list[Piece]:
        question = self._job.question
        try:
            return self._predictor.pieces(texts, None if question is None else [question] * len(texts))
        except TextTooLongError as error:
            raise ConfigError("--question: it fills all tokens that the model reads") from error
