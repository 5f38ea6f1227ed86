"""Sources cut into blocks: together they give every document once, in order, however they are cut."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.sources.block_reader import BadInput, read_block
from headway.data.sources.blocks import plan_blocks
from headway.data.sources.documents import read_documents
from headway.engine.checkpoint.storage import Folder
from s3_server import bucket

TEXTS = [f"Text {number} with ünïcode and\na second line{' more' * (number % 7)}." for number in range(60)]


def written(kind: str, folder) -> CorpusConfig:
    """A source of this kind that holds the texts."""
    rows = "".join(
        json.dumps({"n": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(TEXTS)
    )
    if kind == "folder":
        for number, text in enumerate(TEXTS):
            path = folder / f"{number // 10}" / f"{number:02}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return CorpusConfig(source=str(folder))
    if kind == "glob":
        lines = rows.splitlines(keepends=True)
        for number in range(3):
            (folder / f"part-{number}.jsonl").write_text("".join(lines[20 * number :][:20]), encoding="utf-8")
        (folder / "other.jsonl").write_text("nothing that is read")
        return CorpusConfig(source=f"{folder}/part-*.jsonl")
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text(rows, encoding="utf-8")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(rows.encode()))
    elif kind == "json":
        path.write_text(json.dumps([json.loads(row) for row in rows.splitlines()]))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=7)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["n", "text"], *([n, text] for n, text in enumerate(TEXTS))])
    return CorpusConfig(source=str(path))


@pytest.mark.parametrize("block_bytes", [1, 100, 1000, 1 << 20])
@pytest.mark.parametrize("kind", ["folder", "glob", "jsonl", "jsonl.gz", "json", "parquet", "csv"])
def test_blocks_give_every_text_once_in_order(kind, block_bytes, tmp_path):
    config = written(kind, tmp_path)
    blocks = plan_blocks(config, block_bytes)
    assert [item for block in blocks for item in read_block(block, config)] == TEXTS
    if kind not in ("glob", "jsonl.gz"):  # which only blocks can read
        assert [document.text for document in read_documents(config)] == TEXTS


def test_a_data_set_is_read_in_ranges_of_rows(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    config = CorpusConfig(source=str(tmp_path / "saved"))
    assert [item for block in plan_blocks(config) for item in read_block(block, config)] == TEXTS


@pytest.mark.parametrize("pattern", ["texts", "texts/*.jsonl", "texts/b.jsonl.gz"])
def test_texts_on_an_object_store_are_read_like_those_on_a_disk(pattern):
    rows = [json.dumps({"text": text}).encode() + b"\n" for text in TEXTS]
    with bucket("corpus/texts") as address:
        folder = Folder(address)
        folder.write("a.jsonl", b"".join(rows[:30]))
        folder.write("b.jsonl.gz", b"".join(rows[30:]))  # which pyarrow compresses, by the name
        config = CorpusConfig(source=address.replace("/texts?", f"/{pattern}?"))
        blocks = plan_blocks(config, 700)
        found = [item for block in blocks for item in read_block(block, config)]
    assert found == {"texts": TEXTS, "texts/*.jsonl": TEXTS[:30], "texts/b.jsonl.gz": TEXTS[30:]}[pattern]


def test_files_that_changed_make_other_blocks(tmp_path):
    config = written("jsonl", tmp_path)
    before = [block.digest("") for block in plan_blocks(config, 1000)]
    assert before == [block.digest("") for block in plan_blocks(config, 1000)]
    with (tmp_path / "texts.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert not set(before) & {block.digest("") for block in plan_blocks(config, 1000)}


BAD = {
    b'{"text": "good"}': None,
    b'{"text": "br\xff\xfeoken"}': ("wrong encoding", "byte 12 is not utf-8 text; set encoding"),
    b'{"text": 3}': ("no text", "column 'text' holds int, not text"),
    b'{"title": "a"}': ("no text", "no column 'text'; it has: title"),
    b'["text"]': ("not JSON", "not a JSON object"),
    b'{"text": "cut of': ("not JSON", "not JSON: Unterminated string starting at"),
    b'{"text": "half \\ud83d"}': ("wrong encoding", "column 'text' holds half a character"),
    b'{"text": "' + b"x" * 1_100_000 + b'"}': ("too long", "longer than max_document_mb = 1"),
}


@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_bad_lines_are_told_by_name_and_the_others_are_read(block_bytes, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*BAD, b'{"text": "the end"}']))
    config = CorpusConfig(source=str(path), max_document_mb=1)
    found = [item for block in plan_blocks(config, block_bytes) for item in read_block(block, config)]
    assert [item for item in found if isinstance(item, str)] == ["good", "the end"]
    bad = [item for item in found if isinstance(item, BadInput)]
    assert [(item.kind, item.problem) for item in bad] == [problem for problem in BAD.values() if problem]
    assert bad[0].origin == f"{path}, line 2"


def test_a_truncated_file_gives_what_was_read_before_it_broke_off(tmp_path):
    rows = "".join(json.dumps({"text": text * 500}) + "\n" for text in TEXTS * 5)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(rows.encode())[:-5000])
    config = CorpusConfig(source=str(path))
    [block] = plan_blocks(config)
    found = list(read_block(block, config))
    assert isinstance(found[-1], BadInput)
    assert found[-1].kind == "unreadable"
    assert str(path) in found[-1].origin


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.csv", "a.json"])
def test_files_that_are_not_what_they_say_are_bad_input(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x00\xff\xfe nothing of that kind \x00")
    config = CorpusConfig(source=str(path))
    found = [item for block in plan_blocks(config) for item in read_block(block, config)]
    assert found and all(isinstance(item, BadInput) for item in found)


def test_a_file_that_goes_away_is_bad_input(tmp_path):
    config = written("folder", tmp_path)
    blocks = plan_blocks(config)
    (tmp_path / "0" / "03.txt").unlink()
    found = [item for block in blocks for item in read_block(block, config)]
    assert [item.kind for item in found if isinstance(item, BadInput)] == ["unreadable"]
    assert len(found) == 60


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none-*.jsonl", "matches no file"),
        ("missing.jsonl", "does not exist"),
        ("a.docx", "has an unknown type"),
        ("empty", "holds no .txt file"),
    ],
)
def test_sources_that_are_not_there_are_refused(source, message, tmp_path):
    (tmp_path / "a.docx").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        plan_blocks(CorpusConfig(source=f"{tmp_path}/{source}"))
