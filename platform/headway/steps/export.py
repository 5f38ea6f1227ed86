"""The step `export`: writes a model's graph for another runtime, and checks it against PyTorch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headway.compress.comparison import distinct_texts, packs_of, split_of, spread_out
from headway.compress.export import (
    GRAPHS,
    Exportable,
    Run,
    load_graph,
    padded_inputs,
    require_packages,
    write_graph,
)
from headway.config.base import ConfigError
from headway.config.compression.export import ExportConfig
from headway.data.atomic import atomic_folder, link_or_copy
from headway.engine.formats.static import MODEL_TYPE as STATIC
from headway.engine.model.encoder import load_as_saved
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.runs.context import Context, StepResult
from headway.runs.lineage.step_run import add_data, add_models, step_run
from headway.tracking.logged_models import log_reference
from headway.tracking.references import model_folder


class _Difference(NamedTuple):
    """How far a graph is from PyTorch, and how long each took.

    Attributes:
        largest: absolute difference of any number of an output.
        graph_s: seconds of the graph, on padded batches.
        headway_s: seconds of Headway's own engine in float32, on the same texts without padding.
    """

    largest: float
    graph_s: float
    headway_s: float


def run_export(config: ExportConfig, context: Context) -> StepResult:
    """Copy a model, add its graph, and compare the graph with PyTorch.

    The folder stays one of transformers, which is served and trained like any other.

    Raises:
        ConfigError: an extra is not installed, or a number differs from PyTorch's by more than `tolerance`.
    """
    require_packages(config.format)
    original = model_folder(config.model, context.tracking).resolve()
    texts = spread_out(distinct_texts(config.texts), config.samples)
    target = context.folder / "model"
    with step_run(config, context) as run:
        add_data(run, context, [split_of(config.texts, texts, "check")])
        summary = _made(config, texts, original, target)
        run.log_metrics([(0, {name: float(value) for name, value in summary.items()})])
        add_models(run, context, [(config.model, original)])
        log_reference(run, context.step, target, config.format, config.model_dump(mode="json"))
    return StepResult(str(target), _headline(config, summary), summary=summary)


def _made(config: ExportConfig, texts: Sequence[str], original: Path, target: Path) -> dict[str, Any]:
    model = load_as_saved(original).eval()
    if model.config.model_type == STATIC:
        raise ConfigError(f"model: {str(original)!r} is a table of token vectors, without a graph to export")
    model.set_attn_implementation("sdpa")
    engine = EncoderModel(original, "fp32", torch.device("cpu"))
    longest = min(config.max_length, engine.description.max_length)
    packs = packs_of(texts, original, longest)
    # Two sequences at least, of different lengths: a size of 1 would become part of the graph.
    example = padded_inputs(model, [np.arange(5) % 2 + 1, np.arange(3) % 2 + 1])
    exportable = Exportable(model, example)
    with atomic_folder(target) as draft:
        shutil.copytree(original, draft, copy_function=link_or_copy, dirs_exist_ok=True)
        write_graph(exportable, example, config.format, draft)
        difference = _compared(exportable, load_graph(config.format, draft), engine, packs)
        if not difference.largest <= config.tolerance:
            raise ConfigError(
                f"tolerance: {config.tolerance:g}, but the {config.format} graph of {str(original)!r} is up "
                f"to {difference.largest:.3g} away from PyTorch; nothing is saved"
            )
    return {
        "texts": len(texts),
        "largest_difference": difference.largest,
        "graph_bytes": _bytes((target / GRAPHS[config.format]).parent),
        "speed_ratio_vs_fp32": difference.headway_s / difference.graph_s,
    }


def _compared(exportable: Exportable, run: Run, engine: EncoderModel, packs: Sequence[Pack]) -> _Difference:
    """Compare a graph with PyTorch's padded model, and time it beside Headway's engine."""
    operation = Operation(engine.description.main_operation)
    largest, graph_s, headway_s = 0.0, 0.0, 0.0
    for pack in packs:
        rows = np.split(pack.ids, np.cumsum(pack.lengths)[:-1])
        inputs = padded_inputs(exportable.model, rows)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        began = time.perf_counter()
        outputs = run(arrays)
        graph_s += time.perf_counter() - began
        began = time.perf_counter()
        engine.run(operation, pack)
        headway_s += time.perf_counter() - began
        with torch.inference_mode():
            expected = dict(zip(exportable.names, exportable(**inputs), strict=True))
        mask = inputs["attention_mask"].bool()
        differences = (_difference(name, outputs[name], value, mask) for name, value in expected.items())
        largest = max(largest, *differences)
    return _Difference(largest, graph_s, headway_s)


def _difference(name: str, found: np.ndarray, expected: Tensor, mask: Tensor) -> float:
    """The largest absolute difference; what is given for each token is compared where there is one."""
    distance = (torch.from_numpy(np.asarray(found)) - expected).abs()
    if expected.dim() == 3 or name in ("start_logits", "end_logits"):
        distance = distance[mask]
    return float(distance.max())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _headline(config: ExportConfig, summary: dict[str, Any]) -> str:
    return (
        f"{config.format}: at most {summary['largest_difference']:.1e} from PyTorch on {summary['texts']} "
        f"texts; {summary['graph_bytes'] / 1e6:.1f} MB; {summary['speed_ratio_vs_fp32']:.2f} x as fast as "
        "Headway's fp32 here"
    )
