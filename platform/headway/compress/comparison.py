"""What a smaller model and its original are compared on: texts, packs of them, time and bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from headway.config.sources import SourceConfig
from headway.data.sources.documents import read_documents
from headway.data.sources.origin import origin_of
from headway.data.sources.splitting import drop_duplicates
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer
from headway.runs.lineage.provenance import digest_of
from headway.tracking.data_split import DataSplit

PACK_TEXTS = 32
_TIMED_RUNS = 3

_Item = TypeVar("_Item")


def distinct_texts(source: SourceConfig) -> list[str]:
    """All texts of a source, each once.

    Raises:
        ConfigError: see `read_documents`.
    """
    return [document.text for document in drop_duplicates(read_documents(source))]


def spread_out(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many items, or all if there are fewer, spread over the whole list."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def split_of(source: SourceConfig, texts: Sequence[str], context: str) -> DataSplit:
    """Texts of a source, as an input of a run; `context` says what for."""
    origin = origin_of(source)
    return DataSplit(f"{origin['name']}/texts", digest_of(texts), origin, context, len(texts))


def packs_of(texts: Sequence[str], folder: Path, longest: int) -> list[Pack]:
    """Texts in packs of 32, each cut to `longest` tokens of the tokenizer in a model's folder."""
    sequences = [piece.sequence for piece in TextTokenizer(folder, longest).pieces(texts)]
    return [Pack.of(sequences[start : start + PACK_TEXTS]) for start in range(0, len(sequences), PACK_TEXTS)]


def embedding_seconds(model: EncoderModel, packs: Sequence[Pack]) -> float:
    """The shortest time for all packs, of several runs."""
    seconds = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        for pack in packs:
            model.run(Operation("embed"), pack)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def weight_bytes(folder: Path) -> int:
    """The size of a model's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
