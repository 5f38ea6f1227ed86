"""Measures the models of a data set: scores of each seed, and speed and bytes beside the original."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headway.compress.search.measuring import Speed, answering, served_scores, speeds
from headway.config.serve import Precision
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.inference.int8 import FILE as INT8
from headway.tasks.preparation import retokenized
from headway.tasks.task import Task
from lib.compression.peers import PEERS, Peer

TIMED_TEXTS = 128


@dataclass
class Row:
    """What the table shows of a method.

    Attributes:
        scores: accuracy on the held-out rows, for each seed.
        speed: None if it could not be measured.
        size: bytes.
        note: why something is missing.
    """

    scores: list[float] = field(default_factory=list)
    speed: Speed | None = None
    size: int = 0
    note: str = ""


def precision_of(method: str, folder: Path) -> Precision:
    """The original and what is compared with it compute in fp32; int8 is what a method is about."""
    if method == "mix":  # the search chose its precision, as a server of this machine would take it
        return "auto"
    return "int8" if (folder / INT8).is_file() else "fp32"


def held_out_accuracy(method: str, folder: Path, task: Task, stores: Path) -> float:
    """Of a model as it is served."""
    own = retokenized(task, load_tokenizer(folder), stores)
    return served_scores(folder, precision_of(method, folder), own, "test")["accuracy"]


def peer_rows(
    folder: Path, task: Task, work: Path, wanted: Sequence[str]
) -> dict[str, tuple[Row, Peer | None]]:
    """What others make of the original, or why they cannot."""
    rows: dict[str, tuple[Row, Peer | None]] = {}
    train, test = task.split("train"), task.split("test")
    labels = [task.labels.index(str(target)) for target in test.targets]
    for name in wanted:
        try:
            peer = PEERS[name](folder, work / name.split()[0], texts_of(train)[:300], task.max_length)
            texts = texts_of(test)
            found = [peer.scores(texts[i : i + 32]).argmax(-1) for i in range(0, len(texts), 32)]
        except Exception as error:
            reason = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90] if str(error) else ''}"
            )
            rows[name] = Row(note=reason), None
            continue
        accuracy = float((np.concatenate(found) == np.asarray(labels)).mean())
        rows[name] = Row([accuracy], size=peer.size), peer
    return rows


def texts_of(rows: Any) -> list[str]:
    """The texts of a task's rows."""
    return [" ".join(texts) for texts in rows.texts]


def timed(folders: Mapping[str, Path], peers: Mapping[str, Peer], task: Task) -> dict[str, Speed]:
    """All models by turns in this process, each on the same held-out texts."""
    answers = {name: answering(folder, precision_of(name, folder)) for name, folder in folders.items()}
    answers |= {name: peer.answer for name, peer in peers.items()}
    texts = texts_of(task.split("test"))[:TIMED_TEXTS]
    started = time.perf_counter()
    found = speeds(answers, texts)
    print(f"  timed {len(answers)} models in {time.perf_counter() - started:.0f} s", flush=True)
    return found
