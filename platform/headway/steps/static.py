"""The step `static`: makes a table of token vectors out of an encoder, and compares the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.compress.comparison import (
    distinct_texts,
    embedding_seconds,
    packs_of,
    split_of,
    weight_bytes,
)
from headway.compress.static import distil_table, token_counts
from headway.config.base import ConfigError
from headway.config.compression.static import StaticConfig
from headway.data.atomic import atomic_folder
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.formats.static import MAX_TOKENS
from headway.engine.model.encoder import save_model
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.runs.context import Context, StepResult
from headway.runs.lineage.step_run import add_data, add_models, step_run
from headway.tasks.regression import correlations
from headway.tracking.logged_models import log_reference
from headway.tracking.references import model_folder

_FEWEST_TEXTS = 8


def run_static(config: StaticConfig, context: Context) -> StepResult:
    """Write a table of token vectors, which Headway and sentence-transformers open.

    Raises:
        ConfigError: there are too few texts to compare the table with its encoder.
    """
    original = model_folder(config.model, context.tracking).resolve()
    texts = distinct_texts(config.texts)
    if len(texts) < _FEWEST_TEXTS:
        raise ConfigError(
            f"texts: {config.texts.source!r} has {len(texts)} texts; at least {_FEWEST_TEXTS} are needed"
        )
    target = context.folder / "model"
    with step_run(config, context) as run:
        add_data(run, context, [split_of(config.texts, texts, "comparison")])
        summary = _made(config, texts, original, target)
        run.log_metrics([(0, {name: float(value) for name, value in summary.items()})])
        add_models(run, context, [(config.model, original)])
        log_reference(run, context.step, target, "static", config.model_dump(mode="json"))
    return StepResult(str(target), _headline(summary), summary=summary)


def _made(config: StaticConfig, texts: list[str], original: Path, target: Path) -> dict[str, Any]:
    """Write the table, and measure how close to the encoder and how fast it is."""
    encoder, tokenizer = EncoderModel(original, "fp32"), load_tokenizer(original)
    counts = None
    if config.frequencies == "texts":
        rows = encoder.model.get_input_embeddings().num_embeddings
        counts = token_counts(tokenizer, texts[::2], rows)
    distilled = distil_table(encoder, tokenizer, config.dimensions, config.smoothing, counts)
    with atomic_folder(target) as draft:
        save_model(distilled.model, draft)
        tokenizer.model_max_length = MAX_TOKENS
        tokenizer.save_pretrained(draft)
        compared = texts[1::2][: config.samples]
        packs = packs_of(compared, original, min(config.max_length, encoder.description.max_length))
        summary = _compared(encoder, EncoderModel(draft, "fp32"), packs)
    sizes = {"bytes": weight_bytes(original), "static_bytes": weight_bytes(target)}
    return summary | sizes | {"kept_variance": distilled.kept_variance}


def _compared(encoder: EncoderModel, table: EncoderModel, packs: Sequence[Pack]) -> dict[str, Any]:
    """How alike both find pairs of texts that counted no token, and how fast each is."""
    similarities = []
    for model in (encoder, table):
        vectors = np.concatenate([np.stack(model.run(Operation("embed"), pack)) for pack in packs])
        similarities.append((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)])
    seconds = [embedding_seconds(model, packs) for model in (encoder, table)]
    return {
        "texts": sum(len(pack.lengths) for pack in packs),
        "similarity_spearman": correlations(*similarities)["spearman"],
        "speed_ratio_vs_fp32": seconds[0] / seconds[1],
    }


def _headline(summary: dict[str, Any]) -> str:
    return (
        f"static: similarities of {summary['texts']} texts correlate with the original's at "
        f"{summary['similarity_spearman']:.3f}; {summary['bytes'] / 1e6:.1f} → "
        f"{summary['static_bytes'] / 1e6:.1f} MB; {summary['speed_ratio_vs_fp32']:.0f} x as fast as fp32 "
        "here, without tokenizing"
    )
