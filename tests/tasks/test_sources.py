"""What tasks read: every format, and every mistake in one clear line."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.tasks.preparation import read_task


def task(**settings):
    return validate(FinetuneConfig, {"model": "m", "task": settings}).task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def everything(splits):
    return sorted((tuple(item.texts), item.target) for items in splits.values() for item in items)


def pair_rows():
    return [{"a": f"First {i}", "b": f"Second {i}", "label": "yes" if i % 2 else "no"} for i in range(40)]


def test_csv_jsonl_parquet_and_datasets_hold_the_same_task(tmp_path):
    rows = pair_rows()
    sources = {"jsonl": write(tmp_path / "rows.jsonl", rows)}
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    sources |= {name: str(tmp_path / f"rows.{name}") for name in ("parquet", "csv")}
    sources["datasets"] = str(tmp_path / "saved")
    read = {
        name: everything(read_task(task(source=source, text_column="a", pair_column="b")))
        for name, source in sources.items()
    }
    assert len(read["jsonl"]) == 40
    assert all(rows == read["jsonl"] for rows in read.values())


def test_numbered_labels_of_datasets_become_their_names(tmp_path):
    names = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
    )
    rows = [{"tokens": ["Anna", f"ran{i}"], "ner_tags": [1, 0]} for i in range(40)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    splits = read_task(task(kind="tokens", source=str(tmp_path / "saved")))
    assert all(item.target == ["B-PER", "O"] for items in splits.values() for item in items)


def test_squads_own_nested_file_is_read(tmp_path):
    paragraphs = [
        {
            "context": f"Number {i} lives in Rome.",
            "qas": [
                {
                    "id": str(i),
                    "question": f"Where does {i} live?",
                    "answers": [{"text": "Rome", "answer_start": len(f"Number {i} lives in ")}],
                },
                {"id": f"{i}-none", "question": "Why?", "answers": []},
            ],
        }
        for i in range(30)
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    splits = read_task(task(kind="question-answering", source=str(path)))
    items = [item for items in splits.values() for item in items]
    assert len(items) == 60
    assert {tuple(item.target["texts"]) for item in items} == {("Rome",), ()}
    # Questions on the same passage never part.
    passages = [{item.texts[1] for item in items} for items in splits.values()]
    assert not passages[0] & passages[1] and not passages[0] & passages[2] and not passages[1] & passages[2]


def test_splits_that_are_kept_apart_are_taken_as_they_are(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": f"T {i}", "label": "ab"[i % 2]} for i in range(20)])
    test = write(tmp_path / "test.jsonl", [{"text": f"U {i}", "label": "ab"[i % 2]} for i in range(4)])
    splits = read_task(task(source=train, test_source=test))
    assert [item.texts[0] for item in splits["test"]] == ["U 0", "U 1", "U 2", "U 3"]
    assert len(splits["train"]) + len(splits["validation"]) == 20


MISTAKES = [
    ({}, [{"txt": "a", "label": "b"}], "row 1: no column 'text'; it has: txt, label"),
    ({}, [{"text": 3, "label": "b"}], "row 1: column 'text' holds int, not text"),
    ({}, [{"text": " ", "label": "b"}], "row 1: column 'text' is empty"),
    ({}, [{"text": "a", "label": ""}], "row 1: no label"),
    ({"pair_column": "b"}, [{"text": "a", "label": "x"}], "row 1: no column 'b'; it has: text, label"),
    ({"kind": "regression"}, [{"text": "a", "label": "high"}], "holds 'high', not a finite number"),
    ({"kind": "regression"}, [{"text": "a", "label": "nan"}], "holds 'nan', not a finite number"),
    ({"kind": "multi-label"}, [{"text": "a", "labels": 3}], "column 'labels' holds 3, not a list"),
    ({"kind": "tokens"}, [{"tokens": ["a", "b"], "ner_tags": ["O"]}], "row 1: 2 words have 1 labels"),
    ({"kind": "tokens"}, [{"tokens": [], "ner_tags": []}], "row 1: column 'tokens' is empty"),
    (
        {"kind": "question-answering"},
        [{"question": "q", "context": "c", "answers": ["c"]}],
        "column 'answers' must hold `text` and `answer_start`",
    ),
    (
        {"kind": "question-answering"},
        [{"question": "q", "context": "in Rome", "answers": {"text": ["Rome"], "answer_start": [2]}}],
        "the passage does not have the answer 'Rome' at character 2",
    ),
    (
        {"kind": "reranking"},
        [{"query": "q", "passage": "p", "label": 2}],
        "column 'label' holds 2; allowed: 0 or 1",
    ),
    (
        {"kind": "reranking"},
        [{"query": f"q {i}", "passage": "p", "label": 1} for i in range(40)],
        "no query of the train split has passages of both labels, 0 and 1",
    ),
    (
        {"kind": "regression"},
        [{"text": f"t {i}", "label": 1.5} for i in range(40)],
        "all numbers of the train split are 1.5",
    ),
    (
        {"kind": "multi-label"},
        [{"text": f"t {i}", "labels": []} for i in range(40)],
        "no training row has a label",
    ),
    ({}, [], "holds no row"),
    ({}, [{"text": "a", "label": "b"}], "has too few rows; the"),
]


@pytest.mark.parametrize(("settings", "rows", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_says_where(settings, rows, message, tmp_path):
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError) as caught:
        read_task(task(source=source, **settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_presets_are_filled_in_and_what_is_written_beside_them_wins():
    settings = task(preset="glue/stsb", max_length=64)
    assert (settings.kind, settings.source, settings.subset) == ("regression", "nyu-mll/glue", "stsb")
    assert (settings.pair_column, settings.test_split, settings.max_length) == ("sentence2", "validation", 64)
    assert task(preset="squad").kind == "question-answering"
    assert task(preset="conll2003").label_column == "ner_tags"
    with pytest.raises(ConfigError, match="preset 'glue/x' is not known; allowed: glue/cola, "):
        task(preset="glue/x")
