"""The verb `predict` on files: computes a model's answer for every row, on the cluster by Ray Data.

    files → blocks, each read once: which rows are bad, where parts begin → plan.json
    parts → each read, tokenized, computed and written beside the output by one worker
    parts → the output

The driver holds the plan, and no rows. A part appears whole, so that a run that was stopped continues with
those that are missing, and ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import xxhash

from headway.cluster.capacity import require_processes
from headway.config.base import ConfigError
from headway.data.predictions.inputs import BLOCK_BYTES, InputFile, blocks_of, list_files
from headway.data.predictions.plain_copy import PlainCopier
from headway.data.predictions.plan import Plan
from headway.data.predictions.records import Columns
from headway.data.predictions.survey import SHOWN, Rows, Surveyor, put_together
from headway.data.predictions.work_folder import PARTS, Output, WorkFolder
from headway.data.predictions.writing import Joiner
from headway.data.sources.streams import split_options
from headway.display import Display
from headway.inference.answer_columns import Dtype, answer_schema
from headway.inference.description import Description, Kind, describe, kind_of
from headway.inference.part_scorer import PartScorer, ScoringJob
from headway.ray_data.actors import map_on_actors
from headway.tracking import Tracking
from headway.tracking.references import model_folder

PART_ROWS = 16_384
"""Rows in a part, at most."""
_MIN_PART_BYTES, _MAX_PART_BYTES = 64 << 10, 32 << 20
"""Bytes of a part's rows, about: a 64th of all, within these."""
_READ_HERE_BYTES = 2 * BLOCK_BYTES
"""So much is read without a cluster: what is wrong in small files is told at once."""

Map = Callable[..., Iterator[tuple[int, Any]]]
"""`map_on_actors`, which the cluster is joined for."""


@dataclass(frozen=True)
class PredictRequest:
    """What is asked for.

    Attributes:
        source: a file, a folder, a pattern or a URI: .csv, .jsonl, .json or .parquet, all but the last also
            compressed.
        output: .csv, .jsonl or .parquet, or, with a slash at its end, a folder of .parquet.
        column: the name of the column with the texts.
        question: that a model which answers questions looks for in each text.
        dtype: of the numbers of embeddings, float32 if None.
        on_bad_row: whether a bad row ends the run before anything is computed, or is left out.
    """

    source: str
    output: str
    column: str = "text"
    question: str | None = None
    dtype: Dtype | None = None
    on_bad_row: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True)
class Predicted:
    """How many rows were written, and how many bad ones were left out."""

    rows: int
    bad: int


def predict_file(
    model: str, request: PredictRequest, tracking: Tracking, display: Display, address: str | None = None
) -> Predicted:
    """Write what the model's head answers for every row of some files; an embedding if it has none.

    Args:
        model: a folder, or models:/name@alias.
        request: what is asked for.
        tracking: where `models:/` is looked up.
        display: shows the progress.
        address: of the Ray cluster.

    Raises:
        ConfigError: a file is bad, or rows are (one line for each of the first ten) and none may be, or there
            is no such model; nothing was computed.
    """
    output = Output(request.output)
    output.check()
    folder = model_folder(model, tracking).resolve()
    description = describe(folder)
    kind = kind_in_files(description)
    _check(request, kind)
    answers = answer_schema(kind, description, request.dtype or "float32")
    columns = Columns(request.column, frozenset(answers.names))
    work = WorkFolder(output)
    map_ = _joining_cluster(address, tracking, display)
    plan = _plan(request, folder, columns, output, work, map_, display)
    job = ScoringJob(
        folder,
        kind,
        request.question,
        request.dtype or "float32",
        columns,
        plan.files,
        work,
        output.suffix,
        plan.rows.headers,
        plan.rows.schema,
        answers,
    )
    _compute(plan, job, map_, display)
    if output.is_folder:
        work.publish(PARTS, output)
    else:
        display.waiting("predict", "joining the parts")
        joiner = (work, output, [*job.names, *answers.names], len(plan.rows.parts))
        for _ in map_(Joiner, joiner, [None]):
            work.remove()
    return Predicted(plan.count, plan.rows.bad)


def kind_in_files(description: Description) -> Kind:
    """What rows of files are asked for; they hide no words, so an encoder with that head embeds them."""
    kind = kind_of(description)
    return "embedding" if kind == "masks" else kind


def _check(request: PredictRequest, kind: Kind) -> None:
    if (kind == "answers") != (request.question is not None):
        raise ConfigError("--question: needed by models that answer questions, and by no others")
    if request.dtype is not None and kind != "embedding":
        raise ConfigError("--dtype: only for models that give embeddings")


def _joining_cluster(address: str | None, tracking: Tracking, display: Display) -> Map:
    def map_(*arguments: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        require_processes(1, address, tracking.uri, partial(display.waiting, "predict"))
        return map_on_actors(*arguments, **options)

    return map_


def _plan(
    request: PredictRequest,
    model: Path,
    columns: Columns,
    output: Output,
    work: WorkFolder,
    map_: Map,
    display: Display,
) -> Plan:
    """The plan of an earlier run if its files are unchanged; otherwise one from all rows."""
    files = list_files(request.source)
    settings = {**asdict(request), "model": _digest_of_files(model), "part_rows": PART_ROWS}
    del settings["source"]
    look = _digest([settings, files])
    kept = Plan.read(work)
    if kept is not None and kept.look == look:
        return kept
    if kept is not None:
        replace(kept, look="").write(work)  # its copies of files are about to be replaced
    try:
        plain = _plain_files(files, work, map_, display)
        rows = _surveyed(files, plain, columns, output, map_, display)
        _check_rows(request, rows, display)
    except ConfigError:
        if kept is None:
            work.remove()
        raise
    plan = Plan(look, _digest([settings, rows.digest, rows.parts]), plain, rows)
    plan.write(work)
    return plan


def _plain_files(
    files: Sequence[InputFile], work: WorkFolder, map_: Map, display: Display
) -> list[InputFile]:
    """The files, with copies in place of those that cannot be read from their middle."""
    plain = list(files)
    copied = [(i, file) for i, file in enumerate(files) if not file.is_plain]
    is_small = sum(file.size for _, file in copied) <= _READ_HERE_BYTES
    copies = _here(PlainCopier, (work,), copied) if is_small else map_(PlainCopier, (work,), copied)
    for done, (i, copy) in enumerate(copies, 1):
        plain[copied[i][0]] = copy
        display.waiting("predict", f"{done} of {len(copied)} files unpacked")
    return plain


def _surveyed(
    files: Sequence[InputFile],
    plain: Sequence[InputFile],
    columns: Columns,
    output: Output,
    map_: Map,
    display: Display,
) -> Rows:
    size = sum(file.size for file in plain)
    part_bytes = min(max(size // 64, _MIN_PART_BYTES), _MAX_PART_BYTES)
    arguments = (plain, columns, PART_ROWS, part_bytes, output.suffix == ".parquet")
    try:
        blocks = [block for i, file in enumerate(plain) for block in blocks_of(i, file)]
        surveys: list[Any] = [None] * len(blocks)
        found = (
            _here(Surveyor, arguments, blocks)
            if size <= _READ_HERE_BYTES
            else map_(Surveyor, arguments, blocks)
        )
        for done, (i, survey) in enumerate(found, 1):
            surveys[i] = survey
            display.waiting("predict", f"{done} of {len(blocks)} blocks checked")
        return put_together(plain, blocks, surveys, [split_options(file.address)[0] for file in files])
    except ConfigError as error:
        message = str(error)
        for file, copy in zip(files, plain, strict=True):
            message = message.replace(copy.address, split_options(file.address)[0])
        raise ConfigError(message) from error


def _here(
    make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], items: Sequence[Any]
) -> Iterator[tuple[int, Any]]:
    """What `map_on_actors` does, in this process."""
    return enumerate(map(make(*arguments), items))


def _check_rows(request: PredictRequest, rows: Rows, display: Display) -> None:
    more = [f"and {rows.bad - SHOWN:,} rows more"] if rows.bad > SHOWN else []
    if rows.bad and request.on_bad_row == "fail":
        raise ConfigError("\n".join([*rows.problems, *more]))
    if not rows.parts:
        raise ConfigError(
            f"--input: {request.source!r} holds no row" + (" that is not bad" if rows.bad else "")
        )
    for line in [*rows.problems, *more]:
        display.line(f"left out: {line}")


def _compute(plan: Plan, job: ScoringJob, map_: Map, display: Display) -> None:
    """Write the parts that are missing."""
    parts = plan.rows.parts
    finished = plan.finished(job.work, job.suffix)
    missing = [i for i in range(len(parts)) if i not in finished]
    if finished:
        display.line(f"{len(finished):,} of {len(parts):,} parts were already computed")
    if not missing:
        return
    done = sum(parts[i].rows for i in finished)
    for _, count in map_(PartScorer, (job,), [(i, parts[i]) for i in missing], on_gpus=True):
        done += count
        display.counted("predict", done, plan.count, "texts")


def _digest(content: Any) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_files(folder: Path) -> str:
    """A digest of the files in a folder, by names and content."""
    digest = xxhash.xxh3_128()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
