"""Small sources of every kind of task, made of the grammar that all tests share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

TOPICS = ["garden", "harbour", "kitchen"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def task_settings(
    pairs: list[tuple[str, str]], other_pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Settings of a task of every kind, by name; `pairs` is classification of pairs of texts."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    # Each text is in one pair only, or rows would stay together in a few large groups.
    others = rng.sample(other_pairs, len(other_pairs))

    def source(name: str, rows: list[dict[str, Any]]) -> str:
        return write_rows(folder / f"{name}.jsonl", rows)

    sentences = [(text.split(". ")[0] + ".", text.split(". ")[1], label) for text, label in pairs]
    topic_rows = [
        {"query": f"{topic} {row}", "passage": text, "label": int(topic == label)}
        for row, (text, _, label) in enumerate(sentences)
        for topic in TOPICS
    ]
    ranked = [
        {"query": f"{label} {row}", "passage": other, "label": int(label == other_label)}
        for row, (_, _, label) in enumerate(sentences)
        for other, other_label in rng.sample(pairs, 6)
    ]
    assert topic_rows
    joint = [
        {"text": f"{text} {other}", "labels": sorted({label, other_label})}
        for (text, label), (other, other_label) in zip(pairs, others, strict=True)
    ]
    alike = [
        {"text": text, "other": other, "label": "same" if label == other_label else "different"}
        for (text, label), (other, other_label) in zip(pairs, others, strict=True)
    ]
    scored = [
        {"anchor": row["text"], "positive": row["other"], "score": float(row["label"] == "same")}
        for row in alike
    ]
    return {
        "pairs": {"kind": "classification", "pair_column": "other", "source": source("pairs", alike)},
        "multi-label": {"kind": "multi-label", "source": source("multi", joint)},
        "regression": {
            "kind": "regression",
            "source": source("regression", [{"text": t, "label": t.count("e") / 10} for t, _ in pairs]),
        },
        "tokens": {"kind": "tokens", "source": source("tokens", [_entities(t) for t, _, _ in sentences])},
        "question-answering": {
            "kind": "question-answering",
            "stride": 8,
            "source": source("questions", [_question(text) for text, _ in pairs]),
        },
        "embeddings": {
            "kind": "embeddings",
            "source": source("embeddings", [{"anchor": a, "positive": b} for a, b, _ in sentences]),
        },
        "scored-embeddings": {
            "kind": "embeddings",
            "score_column": "score",
            "loss": "cosine",
            "source": source("scored", scored),
        },
        "reranking": {"kind": "reranking", "source": source("ranked", ranked)},
    }


def _entities(sentence: str) -> dict[str, Any]:
    """Subject and object of a sentence, the object with its quality, as entities."""
    words = sentence.rstrip(".").split()
    labels = ["O", "B-WHO", "O", "O", "B-WHAT", "I-WHAT"] + ["O"] * (len(words) - 6)
    return {"tokens": words, "ner_tags": labels}


def _question(text: str) -> dict[str, Any]:
    """Who does something in the text's last sentence, as SQuAD asks."""
    words = text.split(". ")[-1].split()
    question = f"Who {words[2]} the {words[5]}?"
    start = text.rindex(f"The {words[1]}") + 4
    return {"question": question, "context": text, "answers": {"text": [words[1]], "answer_start": [start]}}
