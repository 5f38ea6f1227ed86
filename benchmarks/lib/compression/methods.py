"""Every way in which `compress.py` makes a classifier smaller, as steps of one pipeline.

A pipeline keeps what it has finished, so a benchmark that was stopped continues with what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """Rows, and how an encoder is fine-tuned on them.

    Attributes:
        name: in the table.
        task: settings of it.
        encoder: a folder, or `${pretrain}` if `before` has that step.
        epochs: of the original's fine-tuning.
        recovery: epochs of the smaller models' fine-tuning.
        layers: that pruned models keep.
        neurons: that they keep of each feed-forward layer.
        before: steps that make the encoder.
    """

    name: str
    task: dict[str, Any]
    encoder: str
    epochs: float
    recovery: float
    layers: int
    neurons: int
    before: dict[str, Any]


METHODS = {
    "original": "fine-tuned, fp32",
    "int8": "the original in int8",
    "packed": "the original in int8, its weights stored so too",
    "magnitude": "pruned by magnitude, nothing else",
    "pruned": "pruned by importance, nothing else",
    "recovered": "pruned by importance, then trained on the labels",
    "distilled": "pruned by importance, then taught by the original",
    "small": "lowest layers of the encoder, fine-tuned alone",
    "taught": "lowest layers of the encoder, taught by the original",
    "mix": "what the step compress finds",
    "static": "a table of token vectors, taught by the original",
}
"""Name → what is done. The steps of a pipeline have the same names."""

_NEEDS = {
    "recovered": ("pruned",),
    "distilled": ("pruned",),
    "static": ("table",),
}


def pipeline(data: DataSet, methods: list[str], seed: int, samples: int) -> dict[str, Any]:
    """The steps that make a data set's models with one seed."""
    steps = dict(data.before)
    for method in ["original", *methods]:
        for name in (*_NEEDS.get(method, ()), method):
            steps[name] = _step(name, data, seed, samples)
    return {"name": f"{data.name}-{seed}", "steps": steps}


def _step(name: str, data: DataSet, seed: int, samples: int) -> dict[str, Any]:
    task, teacher = data.task, "${original}"
    texts = {key: task[key] for key in ("source", "text_column") if key in task}
    cut = {"layers": data.layers, "neurons": data.neurons}
    taught = {"distill": {"teacher": teacher, "temperature": 2.0}}
    training: dict[str, Any] = {"use": "finetune", "task": task, "batch_size": 32, "seed": seed}
    training |= {"attention_dropout": 0.0, "evaluate_every": 10**9, "checkpoint_every": 10**9}
    recovery = training | {"epochs": data.recovery, "optimizer": {"learning_rate": 2e-4}}
    original = training | {"epochs": data.epochs, "optimizer": {"learning_rate": 1e-4}}
    lowest = original | {"model": data.encoder, "layers": data.layers, "epochs": data.recovery}
    rounded = {"use": "quantize", "model": teacher, "texts": texts, "min_cosine": 0.0, "min_speedup": 0.0}
    return {
        "original": original | {"model": data.encoder},
        "int8": rounded,
        "packed": rounded | {"weights": "int8"},
        "magnitude": {"use": "prune", "model": teacher, "by": "magnitude"} | cut,
        "pruned": {"use": "prune", "model": teacher, "task": task, "samples": 256} | cut,
        "recovered": recovery | {"model": "${pruned}"},
        "distilled": recovery | {"model": "${pruned}"} | taught,
        "small": lowest,
        "taught": lowest | taught,
        "mix": {
            "use": "compress",
            "model": teacher,
            "task": task,
            "target": {"throughput": "6x", "size": "0.15x", "max_quality_loss": "1%"},
            "finetune": {
                "epochs": 2 * data.recovery,
                "batch_size": 32,
                "attention_dropout": 0.0,
                "optimizer": {"learning_rate": 2e-4},
            },
            "samples": samples,
            "seed": seed,
        },
        "table": {"use": "static", "model": teacher, "texts": texts},
        "static": recovery | {"model": "${table}", "optimizer": {"learning_rate": 1e-2}} | taught,
    }[name]
