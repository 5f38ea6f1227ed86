"""The columns of a file that a model's answers are written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow

from headway.inference.description import Description, Kind

Dtype = Literal["float32", "float16"]

COLUMNS = {
    **{name: f"predicted_{name}" for name in ("label", "labels", "score", "scores", "entities", "answers")},
    "embedding": "embedding",
}
"""What `Predictor.rows` gives → the name of its column."""

_SPAN = {
    "text": pyarrow.string(),
    "start": pyarrow.int64(),
    "end": pyarrow.int64(),
    "score": pyarrow.float64(),
}


def answer_schema(kind: Kind, description: Description, dtype: Dtype) -> pyarrow.Schema:
    """The columns that the answers of a model of this kind are written to, with their types in Parquet.

    Args:
        kind: see `Predictor`; any but `masks`.
        description: of the model.
        dtype: of the numbers of an embedding.
    """
    number = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    scores = pyarrow.struct([(label, pyarrow.float64()) for label in description.labels])
    types: dict[Kind, dict[str, pyarrow.DataType]] = {
        "label": {"label": pyarrow.string(), "score": pyarrow.float64()},
        "labels": {"labels": pyarrow.list_(pyarrow.string()), "scores": scores},
        "score": {"score": pyarrow.float64()},
        "entities": {"entities": pyarrow.list_(pyarrow.struct({"label": pyarrow.string(), **_SPAN}))},
        "answers": {"answers": pyarrow.list_(pyarrow.struct(_SPAN))},
        "embedding": {"embedding": pyarrow.list_(number, description.embedding_size)},
    }
    return pyarrow.schema([(COLUMNS[name], type_) for name, type_ in types[kind].items()])


def columns_of_answers(answers: Sequence[dict[str, Any]], dtype: Dtype) -> dict[str, Sequence[Any]]:
    """The values of each column, from what `Predictor` gives for some rows; embeddings in `dtype`."""
    columns: dict[str, Sequence[Any]] = {
        column: [answer[name] for answer in answers] for name, column in COLUMNS.items() if name in answers[0]
    }
    if "embedding" in columns:
        columns["embedding"] = list(np.asarray(columns["embedding"], dtype))
    return columns
