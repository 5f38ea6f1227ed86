"""The step `quantize`: makes an encoder's layers multiply 8-bit integers on a CPU, and measures the loss."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.compress.comparison import (
    PACK_TEXTS,
    distinct_texts,
    embedding_seconds,
    split_of,
    spread_out,
    weight_bytes,
)
from headway.compress.quantize import calibrate
from headway.config.base import ConfigError
from headway.config.compression.quantize import QuantizeConfig
from headway.data.atomic import atomic_folder, link_or_copy
from headway.engine.formats.packed import is_packed, pack_folder
from headway.engine.inference.int8 import FILE, write_roundings
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, OperationName, Pack
from headway.inference.tokens import TextTokenizer
from headway.runs.context import Context, StepResult
from headway.runs.lineage.step_run import add_data, add_models, step_run
from headway.tracking.logged_models import log_reference
from headway.tracking.references import model_folder


def run_quantize(config: QuantizeConfig, context: Context) -> StepResult:
    """Copy a model, add the scales for 8-bit integers, and compare it with the original.

    Float weights stay as they are: the folder opens with plain transformers, gives the same results there,
    and can be trained further. They are rounded to integers when the model is served. Packed weights are for
    Headway alone, which serves them, and unpacks them for whatever else it does with a model.

    Raises:
        ConfigError: there are too few texts, int8 does not support the encoder, or the result differs too
            much from the original.
    """
    original = model_folder(config.model, context.tracking).resolve()
    with step_run(config, context) as run:
        target = context.folder / "model"
        texts = _texts(config)
        add_data(run, context, [split_of(config.texts, texts, "calibration")])
        summary = _made(config, texts, original, target)
        figures = {name: float(value) for name, value in summary.items()}
        run.log_metrics([(0, figures)])
        add_models(run, context, [(config.model, original)])
        log_reference(run, context.step, target, _said(config), config.model_dump(mode="json"))
    return StepResult(str(target), _headline(config, summary), summary=summary)


def _made(config: QuantizeConfig, texts: list[str], original: Path, target: Path) -> dict[str, Any]:
    """Write the model, and measure how close it is to the original."""
    if config.weight_bits is not None and is_packed(original):
        raise ConfigError(f"weights: those of {str(original)!r} are packed already")
    exact = EncoderModel(original, "fp32")
    packs = _packs(config, texts, original, exact.description.max_length)
    with atomic_folder(target) as draft:
        shutil.copytree(original, draft, copy_function=link_or_copy, dirs_exist_ok=True)
        (draft / FILE).unlink(missing_ok=True)  # an earlier result's scales
        floats = EncoderModel(draft)
        if config.quantize is not None:
            write_roundings(draft, calibrate(exact, packs[::2]))
        if config.weight_bits is not None:
            pack_folder(draft, config.weight_bits)
        summary = _compared(exact, floats, EncoderModel(draft, config.quantize or "auto"), packs[1::2])
        if summary["cosine"] < config.min_cosine:
            raise ConfigError(
                f"min_cosine: {config.min_cosine}, but the {_said(config)} embeddings of {str(original)!r} "
                f"have a mean cosine of {summary['cosine']:.4f} to the original's; nothing is saved"
            )
        if config.weight_bits is not None:
            summary |= {"bytes": weight_bytes(original), "packed_bytes": weight_bytes(draft)}
        elif summary["speed_ratio_vs_floats"] < config.min_speedup:
            (draft / FILE).unlink()
    return summary


def _said(config: QuantizeConfig) -> str:
    """What was done, in a word or two."""
    weights = f"{config.weights} weights" if config.weight_bits is not None else ""
    return " with ".join(part for part in (config.quantize, weights) if part)


def _texts(config: QuantizeConfig) -> list[str]:
    """Texts spread over the whole source."""
    texts = distinct_texts(config.texts)
    if len(texts) < 2:
        raise ConfigError(f"texts: {config.texts.source!r} has {len(texts)} texts; at least 2 are needed")
    return spread_out(texts, 2 * config.samples)


def _packs(config: QuantizeConfig, texts: list[str], folder: Path, longest: int) -> list[Pack]:
    """Texts in packs: every other one sets the scales, the rest measure."""
    pieces = TextTokenizer(folder, min(config.max_length, longest)).pieces(texts)
    count = max(2, 2 * (len(texts) // (2 * PACK_TEXTS)))
    return [Pack.of([piece.sequence for piece in pieces[start::count]]) for start in range(count)]


def _compared(
    exact: EncoderModel, floats: EncoderModel, rounded: EncoderModel, packs: Sequence[Pack]
) -> dict[str, Any]:
    """How close the result is to the original on texts that set no scales, and how fast it is.

    Args:
        exact: the original in float32.
        floats: the original as it is served.
        rounded: the result as it is served.
        packs: of the texts.
    """
    operations: list[OperationName] = ["embed"]
    if "classify" in exact.description.abilities:
        operations.append("classify")
    cosines: list[float] = []
    same: list[bool] = []
    for pack in packs:
        for name in operations:
            before, after = (np.stack(model.run(Operation(name), pack)) for model in (exact, rounded))
            if name == "embed":
                cosines += (before * after).sum(axis=1).tolist()
            else:
                same += _same_classes(before, after).tolist()
    seconds = {model: embedding_seconds(model, packs) for model in (exact, floats, rounded)}
    summary = {
        "texts": len(cosines),
        "cosine": float(np.mean(cosines)),
        "min_cosine": min(cosines),
        "speed_ratio_vs_fp32": seconds[exact] / seconds[rounded],
        "speed_ratio_vs_floats": seconds[floats] / seconds[rounded],
    }
    return summary | ({"same_class": float(np.mean(same))} if same else {})


def _same_classes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """For each text, whether the predicted class is the same; a single score is compared with 0.5."""
    if before.shape[1] == 1:
        return (before[:, 0] > 0.5) == (after[:, 0] > 0.5)
    return before.argmax(axis=1) == after.argmax(axis=1)


def _headline(config: QuantizeConfig, summary: dict[str, Any]) -> str:
    same = f", {summary['same_class']:.1%} in the same class" if "same_class" in summary else ""
    size = ""
    if "packed_bytes" in summary:
        size = f"{summary['bytes'] / 1e6:.1f} → {summary['packed_bytes'] / 1e6:.1f} MB; "
    ratio = summary["speed_ratio_vs_floats"]
    if config.weight_bits is None and ratio < config.min_speedup:
        return (
            f"{_said(config)} is {ratio:.2f} x as fast here as the floats that are served otherwise, and "
            f"min_speedup is {config.min_speedup:g}: layers keep multiplying floats"
        )
    return (
        f"{_said(config)}: cosine {summary['cosine']:.4f} to the original (at least "
        f"{summary['min_cosine']:.4f}) on {summary['texts']} texts{same}; {size}"
        f"{summary['speed_ratio_vs_fp32']:.2f} x as fast as fp32 here, {ratio:.2f} x as the floats that are "
        "served otherwise"
    )
