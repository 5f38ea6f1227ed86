"""`headway predict` on files: every row answered once, also by a run that was stopped and went on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from headway.config.base import ConfigError
from headway.display import Display
from headway.inference.packing import packed
from headway.steps import predict
from headway.steps.predict import Parts, Scorer, part_table, predict_file
from headway.tracking import Tracking


class StoppedError(Exception):
    """Stands for whatever ends a run."""


class Stopping(Display):
    """Ends the run once so many parts are there."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__(quiet=True)
        self.after, self.computed = after, 0

    def training(self, name: str, step: int, total: int, metrics: Any) -> None:
        self.computed += 1
        if self.computed == self.after:
            raise StoppedError


@pytest.fixture
def rows(pairs, tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Rows of several columns, in each kind of file, in parts of 25."""
    monkeypatch.setattr(predict, "PART_ROWS", 25)
    rows = [{"id": i, "body": text, "note": f'a, "{i}"\nb'} for i, (text, _) in enumerate(pairs)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    return rows


@pytest.fixture
def score(classifier, runs, tmp_path):
    """Answers a file of the test's folder."""

    def score(source: str, output: str, display: Display | None = None, model: Path | None = None) -> int:
        place = tmp_path / output
        given = str(model or classifier)
        display = display or Display(quiet=True)
        return predict_file(given, tmp_path / source, place, Tracking.at(runs), display, column="body")

    return score


def probabilities(folder: Path, texts: list[str]) -> np.ndarray:
    """transformers' own."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch).logits.softmax(-1).numpy()


@pytest.fixture
def here(monkeypatch):
    """Parts are computed in this process, one after the other: starting Ray's takes seconds."""

    def computed(
        folder: Path, texts: list[str], missing: list[int], question: str | None
    ) -> Iterator[tuple[int, pyarrow.Table]]:
        scorer = Scorer(str(folder), 1, question)
        for part in missing:
            yield part, scorer(part_table(texts, part)).drop_columns(["part"])

    return lambda: monkeypatch.setattr(predict, "_computed", computed)


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_file(
    rows, score, classifier, tmp_path, ray_cluster, here
):
    assert score("in.jsonl", "whole.jsonl") == len(rows)
    here()
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=2))
    finished = sorted((tmp_path / ".out.jsonl.parts").glob("*.parquet"))
    written = {path: path.stat().st_mtime_ns for path in finished}
    assert len(finished) == 2 and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=1))
    assert {path: path.stat().st_mtime_ns for path in finished} == written
    rest = Stopping()
    score("in.jsonl", "out.jsonl", rest)
    assert rest.computed == -(-len(rows) // 25) - 3
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = probabilities(classifier, [row["body"] for row in rows])
    labels = AutoModelForSequenceClassification.from_pretrained(classifier).config.id2label
    for row, given, scores in zip(found, rows, expected, strict=True):
        assert {name: row[name] for name in given} == given
        assert row["predicted_label"] == labels[int(scores.argmax())]
        assert row["predicted_score"] == pytest.approx(scores.max(), abs=0.02)


def test_an_encoder_gives_embeddings_in_any_kind_of_file(rows, score, encoder, tmp_path, here):
    here()
    score("in.parquet", "out.parquet", model=encoder)
    score("in.csv", "out.csv", model=encoder)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.select(["id", "body", "note"]).to_pylist() == rows
    found = np.asarray(table["embedding"].to_pylist())
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    batch = tokenizer([row["body"] for row in rows], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    means = (hidden * batch["attention_mask"][..., None]).sum(1)
    assert (found * torch.nn.functional.normalize(means, dim=-1).numpy()).sum(1).min() > 0.999
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["note"] for line in lines] == [row["note"] for row in rows]
    np.testing.assert_allclose([json.loads(line["embedding"]) for line in lines], found, atol=1e-6)


def test_parts_of_another_model_or_file_are_not_used(tmp_path):
    parts = Parts.at(tmp_path / "out.jsonl", "one")
    parts.write(0, pyarrow.table({"embedding": [[1.0]]}))
    assert Parts.at(tmp_path / "out.jsonl", "one").missing(2000) == [1]
    assert Parts.at(tmp_path / "out.jsonl", "other").missing(2000) == [0, 1]


def test_packs_hold_every_sequence_once_and_few_tokens():
    lengths = np.random.default_rng(0).integers(2, 512, 500).tolist()
    packs = list(packed(lengths, 4096))
    assert sorted(place for pack in packs for place in pack) == list(range(500))
    assert all(sum(lengths[place] for place in pack) <= 4096 for pack in packs)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "--input: '.*gone.jsonl' does not exist"),
        ("empty.jsonl", "\n", "--input: '.*empty.jsonl' holds no row"),
        ("kind.txt", "a\n", "kind.txt' has an unknown type"),
        ("broken.jsonl", '{"body": "a"}\n{"body"\n', "broken.jsonl, line 2: not JSON"),
        ("column.csv", "text\na\n", "column.csv, row 1: no column 'body'; it has: text"),
        ("long.csv", "body\na\nb,c\n", "row 2: more fields than the first line has"),
        ("short.csv", "id,body\n1,a\n2\n", "row 2: column 'body' holds NoneType, not text"),
        ("taken.csv", "body,predicted_score\na,b\n", "row 1: column 'predicted_score' is taken; rename it"),
    ],
)
def test_a_bad_file_is_one_clear_line(name, content, message, score, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        score(name, "out.jsonl")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content is not None else [])


def test_every_bad_row_has_its_line_up_to_ten(score, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n' + '{"body": 3}\n' * 12)
    with pytest.raises(ConfigError) as error:
        score("in.jsonl", "out.jsonl")
    lines = str(error.value).splitlines()
    assert len(lines) == 11 and "row 2: column 'body' holds int, not text" in lines[0]
    assert lines[-1] == "and 2 rows more"


def test_what_parquet_cannot_hold_is_told_before_anything_is_computed(score, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a", "x": 1}\n{"body": "b", "x": "one"}\n')
    with pytest.raises(ConfigError, match=r"these rows do not fit into Parquet: .*; use \.jsonl"):
        score("in.jsonl", "out.parquet")


def test_an_output_that_cannot_be_written_is_refused(score, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n')
    (tmp_path / "there.csv").write_text("mine")
    for output, message in [
        ("out.txt", "an unknown type"),
        ("no/such/out.csv", "the folder .* does not exist"),
        ("there.csv", "exists already"),
    ]:
        with pytest.raises(ConfigError, match=message):
            score("in.jsonl", output)
    assert (tmp_path / "there.csv").read_text() == "mine"
