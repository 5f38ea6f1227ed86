"""Every kind of source gives its documents, and every broken one a clear line."""

from __future__ import annotations

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.config.tasks import ClassificationTask
from headway.data.sources.documents import read_documents, source_places

ROWS = [
    {"text": "First text.", "label": "a"},
    {"text": 'Second, with "quotes"\nand a line break.', "label": "b"},
    {"text": "Größe naïve 東京.", "label": "a"},
]


def read(source: object, label_column: str | None = None, **settings):
    return read_documents(SourceConfig(source=str(source), **settings), label_column)


def write(path, rows=ROWS, encoding="utf-8"):
    match path.suffix:
        case ".jsonl" | ".json":
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding=encoding
            )
        case ".csv":
            with path.open("w", encoding=encoding, newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_gives_its_texts_and_labels_in_order(suffix, tmp_path):
    documents = read(write(tmp_path / f"rows{suffix}"), "label")
    assert [document.text for document in documents] == [row["text"] for row in ROWS]
    assert [document.label for document in documents] == ["a", "b", "a"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_may_have_other_names(suffix, tmp_path):
    rows = [{"body": row["text"], "topic": row["label"]} for row in ROWS]
    documents = read(write(tmp_path / f"rows{suffix}", rows), "topic", text_column="body")
    assert [(d.text, d.label) for d in documents] == [(row["text"], row["label"]) for row in ROWS]


def test_a_folder_gives_its_txt_files_with_subfolders_as_labels(tmp_path):
    for name, text in {
        "sport/b.txt": "two",
        "sport/a.txt": "one",
        "art/c.txt": "three",
        "notes.md": "no",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [(d.text, d.label) for d in read(tmp_path)] == [
        ("three", "art"),
        ("one", "sport"),
        ("two", "sport"),
    ]


def test_a_txt_file_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("All\n\nof it.")
    assert [document.text for document in read(tmp_path / "book.txt")] == ["All\n\nof it."]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_read_when_named(suffix, encoding, tmp_path):
    rows = [{"text": "Größe für zwölf.", "label": "a"}]
    path = write(tmp_path / f"rows{suffix}", rows, encoding)
    assert [document.text for document in read(path, encoding=encoding)] == ["Größe für zwölf."]
    with pytest.raises(ConfigError, match="is not utf-8 text; set encoding"):
        read(path)


def test_an_encoding_that_is_none_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="encoding: 'klingon' is not known to Python"):
        read(tmp_path / "a.txt", encoding="klingon")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(suffix, tmp_path):
    """Spreadsheets write one at the start of their CSV."""
    path = write(tmp_path / f"rows{suffix}", encoding="utf-8-sig")
    assert [document.text for document in read(path)] == [row["text"] for row in ROWS]


def test_unicode_line_separators_do_not_break_a_row(tmp_path):
    """JSON and CSV may hold U+2028, U+0085 and form feeds within a value."""
    text = "before\u2028after\u0085and\x0con"
    rows = [{"text": text, "label": "a"}]
    assert [d.text for d in read(write(tmp_path / "rows.jsonl", rows))] == [text]
    assert [d.text for d in read(write(tmp_path / "rows.csv", rows))] == [text]


@pytest.mark.parametrize("kind", ["dataset", "dict"])
def test_a_saved_dataset_gives_its_split_with_the_names_of_classes(kind, tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [1, 0]}, features)
    saved = dataset if kind == "dataset" else datasets.DatasetDict({"train": dataset})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert [(d.text, d.label) for d in read(tmp_path / "saved", "label")] == [("one", "y"), ("two", "x")]


def test_a_split_that_is_not_there_is_refused(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(
        str(tmp_path / "d")
    )
    with pytest.raises(ConfigError, match="no `datasets` name that loads"):
        read(tmp_path / "d", split="test")


def test_a_name_nobody_knows_is_refused():
    with pytest.raises(ConfigError) as caught:
        read("no-such-dataset-anywhere")
    assert "is no folder, no file and no `datasets` name that loads" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blank_documents_are_left_out(tmp_path):
    rows = [{"text": "  \n"}, {"text": "words"}, {"text": ""}]
    assert [document.text for document in read(write(tmp_path / "rows.jsonl", rows))] == ["words"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_missing_label_names_the_row(suffix, tmp_path):
    rows = [{"text": "one", "label": "a"}, {"text": "two", "label": ""}]
    with pytest.raises(ConfigError, match=r"rows\.\w+, row 2: no label"):
        read(write(tmp_path / f"rows{suffix}", rows), "label")


def test_bbc_news_is_read_whole_with_its_five_topics():
    documents = read("bbc-news")
    assert len(documents) == 2225
    assert {d.label for d in documents} == {"business", "entertainment", "politics", "sports", "tech"}


def test_the_places_of_a_source_are_all_that_it_reads(tmp_path):
    path = write(tmp_path / "rows.csv")
    apart = ClassificationTask(source=str(tmp_path), validation_source=str(path), test_source=str(path))
    assert source_places(apart) == [tmp_path, path, path]
    assert source_places(SourceConfig(source="ag_news")) == []


@pytest.mark.parametrize("source", ["/no/where", "./gone", "texts.csv", "~/gone.jsonl"])
def test_a_path_that_leads_nowhere_is_refused_cheaply(source):
    with pytest.raises(ConfigError, match="does not exist"):
        source_places(SourceConfig(source=source))
