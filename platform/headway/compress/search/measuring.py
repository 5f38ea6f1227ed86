"""Measures models as they are served: their scores, how fast they are beside one another, and their bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headway.compress.comparison import packs_of, spread_out
from headway.compress.quantize import calibrate
from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.engine.hardware.device import compute_dtype, default_device
from headway.engine.inference.int8 import FILE, has_int8_products, write_roundings
from headway.engine.model.unpadded import run_trunk
from headway.engine.parallel.worker import Worker
from headway.engine.training.scoring import predict
from headway.inference.description import describe
from headway.inference.model import EncoderModel
from headway.inference.predictor import Predictor, kind_of
from headway.runs.held_out import finetune_settings
from headway.tasks.rows import Rows
from headway.tasks.task import Task

_BATCH_SIZE = 32
_ROUNDS = 5
_SINGLES = 8
_TEXTS = 64
_NAMES: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
_FILES = (".safetensors", ".json")
"""Ends of the names of what a server reads. Other files, such as weights for other programs, do not count."""


class Speed(NamedTuple):
    """How fast a model answers.

    Attributes:
        latency_ms: for one text, tokenizing included.
        texts_per_second: 32 texts at a time.
    """

    latency_ms: float
    texts_per_second: float


Answer = Callable[[Sequence[str]], Any]
"""Takes texts and answers all of them."""


def answering(folder: Path, precision: Precision) -> Answer:
    """A model as it is served, but in this process."""
    # Some heads ask for more than a text; the encoder before them is what takes the time.
    kind = kind_of(describe(folder))
    return Predictor(folder, "embedding" if kind in ("answers", "masks") else kind, precision).rows


def speeds(models: Mapping[str, Answer], texts: Sequence[str]) -> dict[str, Speed]:
    """Time models by turns in this process, so that whatever else the machine does slows all of them.

    Args:
        models: by their names.
        texts: to answer; the first few are also asked one by one.

    Returns:
        The median of several rounds for each model.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    order = list(models)
    for answer in models.values():
        _timed(answer, texts)
    for number in range(_ROUNDS):
        # Each goes first in as many rounds as it goes last, or nearly.
        for name in reversed(order) if number % 2 else order:
            seconds[name].append(_timed(models[name], texts))
    return {
        name: Speed(
            1000.0 * statistics.median(single for single, _ in rounds),
            1.0 / statistics.median(one_of_many for _, one_of_many in rounds),
        )
        for name, rounds in seconds.items()
    }


def _timed(answer: Answer, texts: Sequence[str]) -> tuple[float, float]:
    """Seconds for each text, one by one and in packs."""
    singles = texts[:_SINGLES]
    started = time.perf_counter()
    for text in singles:
        answer([text])
    halfway = time.perf_counter()
    for start in range(0, len(texts), _BATCH_SIZE):
        answer(texts[start : start + _BATCH_SIZE])
    return (halfway - started) / len(singles), (time.perf_counter() - halfway) / len(texts)


def sample_texts(rows: Rows) -> list[str]:
    """Some rows of a task, spread over all of them; the texts of a pair are joined."""
    return [" ".join(rows.texts[index]) for index in spread_out(range(len(rows)), _TEXTS)]


def served_scores(folder: Path, precision: Precision, task: Task, split: str) -> dict[str, float]:
    """Loss and scores of a model as a server computes it.

    Args:
        folder: of the model.
        precision: of its products.
        task: prepared with the model's tokenizer.
        split: whose rows are scored.
    """
    engine = EncoderModel(folder, precision)
    rows = task.split(split)
    settings = finetune_settings(folder, task, {"precision": "fp32"})
    objective = task.objective(engine.model, settings, task.split("train").take(range(1)))
    objective.trunk = partial(run_trunk, layers=engine.trunk.layers)
    batches = task.batches(rows, task.tokenizer_of(folder), batch_size=_BATCH_SIZE)
    worker = Worker(device=engine.device)
    found = predict(objective, batches, worker, batch_size=_BATCH_SIZE, precision="fp32")
    return {"loss": found.loss} | task.scores(rows, found.rows, batches)


def float_precision() -> Precision:
    """The precision in which a server of this machine computes a model that is not quantised."""
    return _NAMES[compute_dtype("auto", default_device())]


def quantised(folder: Path, rows: Rows) -> bool:
    """Put the scales for int8 beside a model's weights, if its layers can multiply integers here.

    Args:
        folder: of the model.
        rows: whose texts set the scales; never those that it is measured on.
    """
    if default_device().type != "cpu" or not has_int8_products():
        return False
    if (folder / FILE).is_file():  # by a process that was stopped later
        return True
    model = EncoderModel(folder, "fp32")
    packs = packs_of([" ".join(texts) for texts in rows.texts], folder, model.description.max_length)
    try:
        roundings = calibrate(model, packs)
    except ConfigError:  # another kind of layers
        return False
    write_roundings(folder, roundings)
    return True


def folder_bytes(folder: Path) -> int:
    """Bytes of the files that a server reads."""
    files = (path for path in folder.rglob("*") if path.suffix in _FILES)
    return sum(path.stat().st_size for path in files)
