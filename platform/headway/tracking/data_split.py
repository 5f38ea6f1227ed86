"""The rows that a run reads, as MLflow shows them among its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.data.sources.globs import is_glob
from headway.data.sources.origin import MEMORY, Origin


@dataclass(frozen=True)
class DataSplit:
    """Rows of one side of a split.

    Attributes:
        name: of the source and the split, such as `bbc-news/train`.
        digest: of the rows; equal rows have equal ones, whatever tokenizer they are prepared with.
        origin: where they come from.
        context: what they are for: training, validation or test.
        rows: how many there are.
        facts: other figures, such as `tokens`.
    """

    name: str
    digest: str
    origin: Origin
    context: str
    rows: int
    facts: Mapping[str, float] = field(default_factory=dict)


def dataset_inputs(splits: Sequence[DataSplit]) -> list[Any]:
    """MLflow's entities for splits."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split in splits:
        kind, source = _source(split.origin)
        profile = {"num_rows": split.rows, **split.facts}
        dataset = Dataset(split.name, split.digest, kind, json.dumps(source), profile=json.dumps(profile))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split.context)]))
    return inputs


def _source(origin: Origin) -> tuple[str, dict[str, Any]]:
    """The type and the fields of the source, which MLflow's `get_source` opens."""
    if origin["path"] is not None:
        return "local", {"uri": Path(origin["path"]).as_uri()}
    if origin["name"] == MEMORY:
        return "code", {"tags": {"mlflow.source.name": MEMORY}}
    if "://" in origin["name"] or is_glob(origin["name"]):
        return "code", {"tags": {"mlflow.source.name": origin["name"]}}
    found = {"path": origin["name"], "config_name": origin["subset"], "split": origin["split"]}
    return "hugging_face", found
