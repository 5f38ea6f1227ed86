"""`headway predict` on files: every row answered once, in order, also by a run that was stopped."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from pyarrow import fs
from transformers import AutoTokenizer

from encoder_folders import save_bert
from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import train_tokenizer
from headway.data.predictions import records
from headway.data.predictions.inputs import blocks_of
from headway.display import Display
from headway.inference.packing import packed
from headway.steps import predict
from headway.steps.predict import Predicted, PredictRequest, predict_file
from headway.tracking import Tracking
from s3_server import bucket
from waiting import PATIENCE

LABELS = ["kitchen", "harbour", "garden"]
ROWS = 110


class StoppedError(Exception):
    """Stands for whatever ends a run."""


class Stopping(Display):
    """Ends the run once so many parts are there."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__(quiet=True)
        self.after, self.computed, self.lines = after, 0, list[str]()

    def line(self, text: str, style: str = "") -> None:
        self.lines.append(text)

    def counted(self, name: str, done: int, total: int, unit: str) -> None:
        self.computed += 1
        if self.computed == self.after:
            raise StoppedError


@pytest.fixture(scope="module")
def make_model(texts, tmp_path_factory):
    """Saves a tiny BERT with random weights and a head."""

    def make(architecture: str, labels: list[str] = LABELS, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        tokenizer = train_tokenizer(texts, vocab_size=300, lowercase=True, max_length=64)
        shape = {"num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}
        save_bert(folder, tokenizer, architecture, labels, **shape | settings)
        return folder

    return make


@pytest.fixture(scope="module")
def model(make_model) -> Path:
    """A classifier."""
    return make_model("BertForSequenceClassification")


@pytest.fixture(scope="module")
def encoder(make_model) -> Path:
    """An encoder without a head."""
    return make_model("BertModel")


@pytest.fixture
def rows(pairs, tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """Rows of several columns, in each kind of file, in parts of 25 that are computed ten at a time."""
    monkeypatch.setattr(predict, "PART_ROWS", 25)
    monkeypatch.setattr(records, "CHUNK_ROWS", 10)
    rows = [{"id": i, "body": text, "note": f'a, "{i}"\nb'} for i, (text, _) in enumerate(pairs[:ROWS])]
    write_inputs(rows, tmp_path)
    return rows


def write_inputs(rows: list[dict[str, Any]], folder: Path) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "list.json").write_text(json.dumps(rows))
    with (folder / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "in.parquet", row_group_size=40)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress((folder / "in.jsonl").read_bytes()))
    (folder / "packed.csv.bz2").write_bytes(bz2.compress((folder / "in.csv").read_bytes()))
    (folder / "shards").mkdir()
    half = len(rows) // 2
    for name, some in (("b.jsonl", rows[half:]), ("a.jsonl", rows[:half])):
        (folder / "shards" / name).write_text("".join(json.dumps(row) + "\n" for row in some))


@pytest.fixture
def score(model, runs, tmp_path):
    """Answers a file of the test's folder."""

    def score(source: str, output: str, display: Display | None = None, folder: Path | None = None, **more):
        place = [name if "://" in name else f"{tmp_path}/{name}" for name in (source, output)]
        settings: dict[str, Any] = {"column": "body"} | more
        request = PredictRequest(place[0], place[1], **settings)
        return predict_file(str(folder or model), request, Tracking.at(runs), display or Display(quiet=True))

    return score


@pytest.fixture
def here(monkeypatch) -> None:
    """All is done in this process, one after the other: starting Ray's takes seconds."""

    def map_on_actors(make, arguments, items, on_gpus=False):
        yield from enumerate(map(make(*arguments), items))

    monkeypatch.setattr(predict, "map_on_actors", map_on_actors)
    monkeypatch.setattr(predict, "require_processes", lambda *_: None)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outputs(folder: Path, auto_class: Any, texts: list[str]) -> Any:
    """transformers' own."""
    loaded = auto_class.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        return loaded(**batch), batch


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_file(rows, score, model, tmp_path, here):
    assert score("in.jsonl", "whole.jsonl") == Predicted(ROWS, 0)
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=2))
    finished = sorted((tmp_path / ".out.jsonl.parts" / "parts").iterdir())
    written = {path: path.stat().st_mtime_ns for path in finished}
    assert len(finished) == 2 and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=1))
    assert {path: path.stat().st_mtime_ns for path in finished} == written
    rest = Stopping()
    score("in.jsonl", "out.jsonl", rest)
    assert rest.lines == ["3 of 4 parts were already computed"] and rest.computed == 1
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    expected, _ = outputs(
        model, transformers.AutoModelForSequenceClassification, [row["body"] for row in rows]
    )
    for row, given, scores in zip(
        read_jsonl(tmp_path / "out.jsonl"), rows, expected.logits.softmax(-1).numpy(), strict=True
    ):
        assert {name: row[name] for name in given} == given
        assert row["predicted_score"] == pytest.approx(scores[LABELS.index(row["predicted_label"])], abs=0.02)
        assert row["predicted_score"] == pytest.approx(scores.max(), abs=0.02)


@pytest.mark.parametrize(
    "source",
    ["in.csv", "in.parquet", "list.json", "packed.jsonl.gz", "packed.csv.bz2", "shards", "shards/*.jsonl"],
)
def test_every_kind_of_input_has_the_same_answers(rows, score, tmp_path, here, source):
    score("in.jsonl", "expected.jsonl")
    expected = read_jsonl(tmp_path / "expected.jsonl")
    for output in ("out.jsonl", "out.csv", "out.parquet"):
        assert score(source, output) == Predicted(ROWS, 0)
    found = read_jsonl(tmp_path / "out.jsonl")
    assert found == pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {name: str(value) for name, value in row.items()} for row in found
        ]
    for row, other in zip(found, expected, strict=True):
        score_, other_score = row.pop("predicted_score"), other.pop("predicted_score")
        assert score_ == pytest.approx(other_score, abs=1e-5)
        assert row | {"id": int(row["id"])} == other
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_embeddings_are_vectors_of_fixed_size_in_a_folder_of_parts(
    rows, score, encoder, tmp_path, here, dtype
):
    score("in.parquet", "out/", folder=encoder, dtype=dtype)
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    table = pyarrow.parquet.read_table(tmp_path / "out")
    number = pyarrow.float16() if dtype else pyarrow.float32()
    assert table.schema.field("embedding").type == pyarrow.list_(number, 32)
    assert table.select(["id", "body", "note"]).to_pylist() == rows
    found = np.asarray(table["embedding"].to_pylist(), np.float32)
    output, batch = outputs(encoder, transformers.AutoModel, [row["body"] for row in rows])
    means = (output.last_hidden_state * batch["attention_mask"][..., None]).sum(1)
    assert (found * torch.nn.functional.normalize(means, dim=-1).numpy()).sum(1).min() > 0.999
    for name in ("text.jsonl", "text.csv"):
        score("in.parquet", name, folder=encoder, dtype=dtype)
    in_lines = [row["embedding"] for row in read_jsonl(tmp_path / "text.jsonl")]
    with (tmp_path / "text.csv").open(newline="") as file:
        in_cells = [json.loads(row["embedding"]) for row in csv.DictReader(file)]
    assert in_lines == in_cells
    np.testing.assert_array_equal(np.asarray(in_lines, np.float16 if dtype else np.float32), found)


@pytest.mark.parametrize(
    ("architecture", "settings", "added"),
    [
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            {"predicted_labels", "predicted_scores"},
        ),
        ("BertForSequenceClassification", {"labels": ["grade"]}, {"predicted_score"}),
        ("BertForTokenClassification", {"labels": ["O", "B-A", "B-B"]}, {"predicted_entities"}),
        ("BertForQuestionAnswering", {}, {"predicted_answers"}),
    ],
)
def test_answers_of_every_head_are_the_same_in_lines_and_in_parquet(
    rows, score, make_model, tmp_path, here, architecture, settings, added
):
    folder = make_model(architecture, **settings)
    more: dict[str, Any] = {"question": "Who steers?"} if architecture.endswith("Answering") else {}
    score("in.jsonl", "out.jsonl", folder=folder, **more)
    score("in.jsonl", "out.parquet", folder=folder, **more)
    found = read_jsonl(tmp_path / "out.jsonl")
    assert set(found[0]) - set(rows[0]) == added
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == found
    assert any(row[min(added)] for row in found)


def test_columns_of_parquet_keep_their_types(score, tmp_path, here):
    table = pyarrow.table(
        {
            "body": pyarrow.array(["a", "b"], pyarrow.large_string()),
            "n": pyarrow.array([1, None], pyarrow.int8()),
            "day": pyarrow.array([1, 2], pyarrow.date32()),
            "tags": [["x"], []],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    score("in.parquet", "out.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").select(table.column_names).equals(table)


def test_rows_of_different_columns_and_numbers_fit_into_one_table(score, tmp_path, here, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_ROWS", 1)
    rows: list[dict[str, Any]] = [{"body": "a", "n": 1}, {"body": "b", "x": None}]
    rows.append({"n": 2.5, "x": "y", "body": "c"})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score("in.jsonl", "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").select(["body", "n", "x"]).to_pylist()
    assert found == [{"body": "a", "n": 1.0, "x": None}, {"body": "b", "n": None, "x": None}, rows[2]]


def test_numbers_stay_as_they_are_in_lines(score, tmp_path, here):
    row = '{"body": "a", "n": 123456789012345678901234567890, "x": NaN, "y": 0.1, "z": "\u2028"}'
    (tmp_path / "in.jsonl").write_text(row + "\n", encoding="utf-8")
    score("in.jsonl", "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").startswith(row[:-1] + ", ")


def test_parts_of_another_model_column_or_content_are_not_used(rows, score, encoder, tmp_path, here):
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=3))
    kept = shutil.copytree(tmp_path / ".out.jsonl.parts", tmp_path / "kept")
    others: list[dict[str, Any]] = [{"folder": encoder}, {"column": "note"}, {"on_bad_row": "skip"}]
    for more in others:
        shutil.copytree(kept, tmp_path / ".out.jsonl.parts", dirs_exist_ok=True)
        display = Stopping()
        score("in.jsonl", "out.jsonl", display, **more)
        assert display.lines == [] and display.computed == 4
        (tmp_path / "out.jsonl").unlink()


def test_a_file_that_was_only_touched_is_not_computed_again(rows, score, tmp_path, here):
    with pytest.raises(StoppedError):
        score("packed.jsonl.gz", "out.jsonl", Stopping(after=3))
    os.utime(tmp_path / "packed.jsonl.gz")
    display = Stopping()
    score("packed.jsonl.gz", "out.jsonl", display)
    assert display.lines == ["3 of 4 parts were already computed"]


def test_rows_that_changed_after_they_were_checked_end_the_run(rows, score, tmp_path, here):
    with pytest.raises(StoppedError):
        score("in.jsonl", "out.jsonl", Stopping(after=3))
    path = tmp_path / "in.jsonl"
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-40] + b" " * 40)  # its size and time stay
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"in.jsonl: changed while it was read"):
        score("in.jsonl", "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_input_and_output_on_an_object_store(rows, score, tmp_path, here):
    with bucket("bulk/data") as uri:
        base, _, options = uri.partition("?")
        store, path = fs.FileSystem.from_uri(uri)
        store.create_dir(f"{path}/in")
        for name in ("a.jsonl", "b.jsonl"):
            fs.copy_files(str(tmp_path / "shards" / name), f"{path}/in/{name}", fs.LocalFileSystem(), store)
        score("shards", "here.jsonl")
        source = f"{base}/in?{options}"
        with pytest.raises(StoppedError):
            score(source, f"{base}/out/whole.jsonl?{options}", Stopping(after=2))
        rest = Stopping()
        score(source, f"{base}/out/whole.jsonl?{options}", rest)
        assert rest.lines == ["2 of 4 parts were already computed"]
        score(source, f"{base}/out/parts/?{options}")
        with store.open_input_stream(f"{path}/out/whole.jsonl") as stream:
            assert stream.read() == (tmp_path / "here.jsonl").read_bytes()
        table = pyarrow.parquet.read_table(f"{path}/out/parts", filesystem=store)
        assert table.to_pylist() == read_jsonl(tmp_path / "here.jsonl")
        names = store.get_file_info(fs.FileSelector(f"{path}/out", recursive=True))
        assert not [info.path for info in names if "/." in info.path]


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
        ("broken.jsonl", '{"body": "a"}\n\n{"body"\n', "broken.jsonl, line 3: not JSON"),
        ("column.csv", "text\na\n", "column.csv, row 1: no column 'body'; it has: text"),
        ("long.csv", "body\na\nb,c\n", "row 2: more fields than the first line has"),
        ("short.csv", "id,body\n1,a\n2\n", "row 2: column 'body' holds NoneType, not text"),
        ("taken.csv", "body,predicted_score\na,b\n", "row 1: column 'predicted_score' is taken; rename it"),
        ("list.json", '[{"body": 1}]', "list.json, row 1: column 'body' holds int, not text"),
        ("cut.jsonl.gz", gzip.compress(os.urandom(10_000))[:5_000], "cut.jsonl.gz: cannot be read: "),
        ("cut.parquet", b"PAR1", "cut.parquet: cannot be read: "),
    ],
)
def test_a_bad_file_is_one_clear_line(name, content, message, score, tmp_path, here):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message) as error:
        score(name, "out.jsonl")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if content is not None else [])


def test_every_bad_row_has_its_line_up_to_ten(score, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "blocks_of", lambda i, file: blocks_of(i, file, block_bytes=40))
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n' + '\n{"body": 3}\n' * 12)
    with pytest.raises(ConfigError) as error:
        score("in.jsonl", "out.jsonl")
    lines = str(error.value).splitlines()
    assert len(lines) == 11 and "row 2: column 'body' holds int, not text" in lines[0]
    assert "row 11: column 'body' holds int" in lines[9]
    assert lines[-1] == "and 2 rows more"


def test_bad_rows_may_be_left_out_and_are_told(score, tmp_path, here):
    lines = [
        '{"body": "a", "i": 0}',
        '{"body"',
        '{"body": "b", "i": 2}',
        '{"body": 3}',
        '{"body": "c", "i": 4}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    display = Stopping()
    assert score("in.jsonl", "out.jsonl", display, on_bad_row="skip") == Predicted(3, 2)
    assert [row["i"] for row in read_jsonl(tmp_path / "out.jsonl")] == [0, 2, 4]
    assert [line.rpartition("in.jsonl, ")[2] for line in display.lines] == [
        "line 2: not JSON: Expecting ':' delimiter",
        "row 4: column 'body' holds int, not text",
    ]


def test_a_file_that_breaks_off_ends_the_run_even_if_bad_rows_may_be_left_out(score, tmp_path, here):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(os.urandom(10_000))[:5_000])
    (tmp_path / "bad.jsonl").write_text('{"body": 1}\n')
    for name, message in [("cut.jsonl.gz", "cannot be read"), ("bad.jsonl", "holds no row that is not bad")]:
        with pytest.raises(ConfigError, match=message):
            score(name, "out.jsonl", on_bad_row="skip")


def test_what_parquet_cannot_hold_is_told_before_anything_is_computed(score, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a", "x": 1}\n{"body": "b", "x": "one"}\n')
    with pytest.raises(ConfigError, match=r"these rows do not fit into Parquet: .*; use \.jsonl"):
        score("in.jsonl", "out.parquet")


def test_an_output_that_cannot_be_written_is_refused(score, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n')
    (tmp_path / "there.csv").write_text("mine")
    for output, message in [
        ("out.txt", "an unknown type"),
        ("out", "an unknown type; .* or a folder of Parquet files, with / at its end"),
        ("no/such/out.csv", "the folder .* does not exist"),
        ("there.csv", "exists already"),
    ]:
        with pytest.raises(ConfigError, match=message):
            score("in.jsonl", output)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_options_that_a_model_has_no_use_for_are_refused(score, encoder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n')
    with pytest.raises(ConfigError, match="--dtype: only for models that give embeddings"):
        score("in.jsonl", "out.jsonl", dtype="float16")
    with pytest.raises(ConfigError, match="--question: needed by models that answer questions"):
        score("in.jsonl", "out.jsonl", folder=encoder, question="Who?")


def many_rows(path: Path, count: int, length: int = 1) -> None:
    with path.open("w") as file:
        for i in range(count):
            file.write(json.dumps({"id": i, "text": f"The old boat number {i} is here. " * length}) + "\n")


def command(model: Path, source: Path, output: Path, runs: Path) -> list[str]:
    """`headway predict` in a process of its own, which says how much memory it has had at most."""
    code = (
        "import resource, sys; from headway.cli.main import main\n"
        "try: main()\n"
        "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    arguments = ["--model", model, "--input", source, "--output", output, "--runs", runs]
    return [sys.executable, "-c", code, "predict", *map(str, arguments)]


def worker_that_reads(path: Path) -> psutil.Process | None:
    """A process below this one that has a file open, as workers have the one of their part."""
    for process in psutil.Process().children(recursive=True):
        try:
            if any(file.path == str(path) for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    return None


def test_a_driver_and_a_worker_killed_on_the_way_change_nothing(model, tmp_path, runs, ray_cluster):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    many_rows(source, 60_000)
    parts = tmp_path / ".out.jsonl.parts" / "parts"
    with subprocess.Popen(command(model, source, output, runs), stdout=subprocess.DEVNULL) as driver:
        deadline = time.monotonic() + PATIENCE
        while not (parts.is_dir() and len(list(parts.iterdir())) >= 3):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert not output.exists()
    killed: list[int] = []

    def kill_a_worker() -> None:
        while not killed and not output.exists():
            if (worker := worker_that_reads(source)) is not None and worker.pid != os.getpid():
                worker.kill()
                killed.append(worker.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    request = PredictRequest(str(source), str(output))
    display = Stopping()
    done = predict_file(str(model), request, Tracking.at(runs), display)
    thread.join()
    assert done == Predicted(60_000, 0) and killed and "parts were already computed" in display.lines[0]
    assert [row["id"] for row in read_jsonl(output)] == list(range(60_000))
    whole = tmp_path / "whole.jsonl"
    predict_file(str(model), PredictRequest(str(source), str(whole)), Tracking.at(runs), Display(quiet=True))
    assert output.read_bytes() == whole.read_bytes()


def test_the_drivers_memory_does_not_grow_with_the_rows(model, tmp_path, runs):
    peaks = []
    for count in (1_000, 40_000):
        source = tmp_path / f"{count}.jsonl"
        many_rows(source, count, length=64)
        done = subprocess.run(
            command(model, source, tmp_path / f"{count}.parquet", runs),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE * 5,
        )
        assert f"{count:,} rows: " in done.stdout
        peaks.append(int(done.stdout.split()[-1]))
    assert (tmp_path / "40000.jsonl").stat().st_size > 80 << 20
    assert peaks[1] - peaks[0] < 30
