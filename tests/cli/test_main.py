"""The command: one clear line and an exit code for every mistake, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner, Result

from headway.cli.main import main
from headway.serving import load_test
from headway.serving.load_test import LoadResult
from headway.tracking import Tracking
from ports import deaf_port, free_port
from waiting import PATIENCE

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Call the command in this process, with `runs` in a folder of the test's own."""
    # The command ends the Ray of its process; here it belongs to all tests.
    monkeypatch.setattr("headway.cluster.connect.disconnect", lambda: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)

    return call


def refused(result: Result, tmp_path: Path, *parts: str) -> None:
    """One line that names what is wrong, exit code 2, and not a file more than before."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    for part in parts:
        assert part in lines[0]
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert written == [], "something was written"


def corpus_pipeline(source: Path | str, **settings: Any) -> dict[str, Any]:
    return {"name": "p", "steps": {"words": {"use": "corpus", "source": str(source), **settings}}}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            corpus_pipeline("x", sauce="s"),
            ["words.sauce: unknown setting; did you mean 'source'"],
        ),
        (corpus_pipeline("x", vocab_size="big"), ["words.vocab_size: 'big' is not allowed"]),
        (corpus_pipeline("missing.csv"), ["words.source: 'missing.csv' does not exist"]),
        (corpus_pipeline("/no/such/folder"), ["words.source: '/no/such/folder' does not exist"]),
        (
            {"name": "p", "steps": {"a": {"use": "pretrain", "corpus": "${words}"}}},
            ["a: ${words} names no earlier step; earlier steps: none"],
        ),
    ],
)
def test_a_bad_pipeline_is_refused_before_anything_runs(settings, parts, invoke, write_yaml, tmp_path):
    refused(invoke("run", write_yaml(settings)), tmp_path, *parts)
    assert not (tmp_path / "runs").exists()


def test_a_missing_pipeline_file_is_named(invoke, tmp_path):
    refused(invoke("run", "nowhere.yaml"), tmp_path, "nowhere.yaml: no such file")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("words.vocab_size", "write it as path.to.setting=value"),
        ("word.vocab_size=99", "--set word: no step has that name; did you mean 'words'"),
        ("words.vocab_size=none", "words.vocab_size: 'none' is not allowed"),
        ("words.vocab_size=[1", "--set words.vocab_size, line 1: not valid YAML"),
        ("words.source.deep=1", "words.source.deep: 'source' is text, not a group of settings"),
    ],
)
def test_a_bad_override_is_refused(override, part, invoke, write_yaml, tmp_path, labelled_file):
    refused(invoke("run", write_yaml(corpus_pipeline(labelled_file)), "--set", override), tmp_path, part)
    assert not (tmp_path / "runs").exists()


BAD_SOURCES = {
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b" \n\t\n", "holds no text"),
    "latin.txt": ("Sch\u00f6n war's.".encode("latin-1"), "byte 3 is not utf-8 text; set encoding"),
    "binary.txt": (b"ab\0cd", "not text (it holds zero bytes)"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "list.jsonl": (b'["a"]\n', "line 1: not a JSON object"),
    "column.jsonl": (b'{"body": "a"}\n', "has no column 'text'; known: body"),
    "number.jsonl": (b'{"text": 3}\n', "line 1: column 'text' holds int, not text"),
    "column.csv": (b"body\nhello\n", "has no column 'text'; known: body"),
    "broken.parquet": (b"PAR1 no", "not Parquet"),
    "page.html": (b"<p>", "has an unknown type; allowed: a folder, .txt, .jsonl"),
    "one.txt": (b"A single document.", "has 1 distinct document(s), too few to"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_source_without_usable_text_is_refused(name, invoke, write_yaml, tmp_path):
    content, part = BAD_SOURCES[name]
    (tmp_path / name).write_bytes(content)
    refused(invoke("run", write_yaml(corpus_pipeline(tmp_path / name)), "--quiet"), tmp_path, part)


def test_an_empty_folder_is_refused(invoke, write_yaml, tmp_path):
    (tmp_path / "texts").mkdir()
    refused(invoke("run", write_yaml(corpus_pipeline(tmp_path / "texts"))), tmp_path, "holds no .txt file")


def test_an_unreadable_file_is_refused(invoke, write_yaml, tmp_path):
    # Root may read everything; a dangling link nobody can.
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    refused(
        invoke("run", write_yaml(corpus_pipeline(tmp_path / "texts"))), tmp_path, "gone.txt: cannot be read"
    )


def test_a_text_without_its_label_is_refused(invoke, write_yaml, tmp_path, encoder):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a b", "label": "x"}\n{"text": "c d", "label": null}\n')
    file = write_yaml({"model": str(encoder), "task": {"source": str(path)}})
    refused(invoke("finetune", file, "--quiet"), tmp_path, "texts.jsonl, row 2: no label")


def test_a_missing_label_column_is_refused(invoke, write_yaml, tmp_path, encoder, labelled_file):
    task = {"source": str(labelled_file), "label_column": "topic"}
    file = write_yaml({"model": str(encoder), "task": task})
    refused(invoke("finetune", file, "--quiet"), tmp_path, "row 1: no column 'topic'; it has: text, label")


def test_a_model_that_is_none_is_refused(invoke, write_yaml, tmp_path, labelled_file):
    file = write_yaml({"model": str(tmp_path), "task": {"source": str(labelled_file)}})
    refused(invoke("finetune", file, "--quiet"), tmp_path, "is not a folder with a transformers model")


def test_a_corpus_that_is_none_is_refused(invoke, write_yaml, tmp_path):
    refused(
        invoke("pretrain", write_yaml({"corpus": str(tmp_path)}), "--quiet"),
        tmp_path,
        "not a prepared corpus",
    )


def test_more_workers_than_cores_are_refused(invoke, write_yaml, tmp_path, corpus, tiny_shape, ray_cluster):
    settings = {"corpus": str(corpus.folder), "model": tiny_shape, "steps": 1, "workers": 64}
    file = write_yaml(settings)
    refused(
        invoke("pretrain", file, "--quiet"),
        tmp_path,
        "workers: 64 is more than the cluster has cores; free now: 2",
    )


def test_a_search_over_a_setting_that_is_none_is_refused(
    invoke, write_yaml, tmp_path, encoder, labelled_file
):
    sweep = {
        "model": str(encoder),
        "task": {"source": str(labelled_file)},
        "search": {"optimizer.speed": [1]},
    }
    refused(invoke("sweep", write_yaml(sweep), "--quiet"), tmp_path, "optimizer.speed: unknown setting")


def test_a_cluster_that_does_not_answer_is_named(tmp_path, write_yaml, corpus, tiny_shape):
    file = write_yaml({"corpus": str(corpus.folder), "model": tiny_shape, "steps": 1, "workers": 1})
    with deaf_port() as port:
        done = headway("pretrain", file, "--quiet", cwd=tmp_path, RAY_ADDRESS=f"127.0.0.1:{port}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: address: no Ray cluster to join at '127.0.0.1:{port}'")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_tracking_address_that_does_not_answer_is_named(tmp_path, write_yaml, corpus, tiny_shape):
    file = write_yaml({"corpus": str(corpus.folder), "model": tiny_shape, "steps": 1})
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
    with deaf_port() as port:
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        done = headway("pretrain", file, "--quiet", cwd=tmp_path, **environment)
    assert done.returncode == 2, done.stderr
    assert f"MLFLOW_TRACKING_URI: 'http://127.0.0.1:{port}' cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_shell_a_mistake_is_one_line_and_exit_code_2(tmp_path, write_yaml):
    file = write_yaml({"name": "p", "steps": {"a": {"use": "corpus", "sauce": "s"}}, "extra": 1})
    done = headway("run", file, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: extra: unknown setting; known: name, steps\n"
    assert not (tmp_path / "runs").exists()


def test_a_step_that_fails_is_exit_code_1_without_a_traceback(
    invoke, write_yaml, tmp_path, corpus, tiny_shape
):
    # Any loss explodes at this rate.
    diverging = {"name": "adamw", "learning_rate": 1e30}
    settings = {"corpus": str(corpus.folder), "model": tiny_shape, "steps": 20, "optimizer": diverging}
    result = invoke("pretrain", write_yaml(settings), "--quiet")
    assert result.exit_code == 1
    assert re.match(r"failed: TrainingError: the gradient of step \d+ is not finite", result.stderr)
    assert "Traceback" not in result.output
    # The last line names a file with the rest.
    last = result.stderr.splitlines()[-1]
    assert last.startswith("tracebacks and log: runs/pretrain/")
    log = (tmp_path / last.removeprefix("tracebacks and log: ")).read_text()
    assert re.search(r"Traceback.*in run\n.*TrainingError: the gradient of step \d+", log, re.DOTALL)
    [experiment] = Tracking.at(tmp_path / "runs").client.search_experiments(filter_string="name = 'pretrain'")
    [run] = Tracking.at(tmp_path / "runs").client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["headway.reason"].startswith("the gradient of step")


def test_version_and_help_name_every_verb(invoke):
    assert re.search(r"\d+\.\d+\.\d+", invoke("--version").output)
    help_text = invoke("--help").output
    for verb in ("run", "pretrain", "finetune", "sweep", "evaluate", "serve", "predict", "doctor"):
        assert re.search(rf"^  {verb}\b", help_text, re.MULTILINE)


def test_doctor_tells_what_the_machine_has(invoke):
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    for subject in ("Python", "torch", "ray", "mlflow", "cores", "GPUs", "bf16", "memory", "Ray cluster"):
        assert subject in result.output


def test_doctor_tells_scripts_in_json(invoke):
    findings = json.loads(invoke("doctor", "--json").stdout)
    assert {"Python", "cores"} <= {finding["subject"] for finding in findings}
    assert not any(finding["is_problem"] for finding in findings)


def test_run_prints_nothing_but_its_summary_for_scripts(invoke, write_yaml, labelled_file, tmp_path):
    result = invoke(
        "run", write_yaml(corpus_pipeline(labelled_file, vocab_size=300, max_length=32)), "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "runs" / "p" / "summary.json").read_text())


def test_a_load_test_names_the_model_that_it_is_for(invoke, tmp_path, monkeypatch):
    bodies: list[Any] = []

    async def noted(url: str, requests: Iterable[tuple[Any, int]], clients: int, **_: Any) -> LoadResult:
        bodies.extend(body for body, _ in requests)
        return LoadResult(seconds=1.0)

    monkeypatch.setattr(load_test, "apply_load", noted)
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    for named in ([], ["--model", "news"]):
        arguments = ("load-test", "http://x", "--file", tmp_path / "texts.txt", "--requests", "1")
        assert invoke(*arguments, *named).exit_code == 0
    assert bodies == [{"input": "one"}, {"model": "news", "input": "one"}]


def test_doctor_exits_1_when_a_run_would_fail(invoke, monkeypatch):
    with deaf_port() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        result = invoke("doctor")
    assert result.exit_code == 1
    assert re.search(rf"127\.0\.0\.1:{port}.*refused", result.output)


def test_predict_prints_a_json_line_a_text(invoke, classifier, pairs):
    (text, label), other = pairs[0], pairs[-1]
    result = invoke("predict", "--model", classifier, text, other[0])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == [text, other[0]]
    assert [row["label"] for row in rows] == [label, other[1]]
    expected = transformers.pipeline("text-classification", str(classifier))([text, other[0]])
    assert [row["score"] for row in rows] == pytest.approx([one["score"] for one in expected], abs=1e-3)


def test_predict_invents_no_labels_for_an_encoder_without_a_head(invoke, encoder, tmp_path):
    transformers.AutoModel.from_pretrained(encoder).save_pretrained(tmp_path / "bare")
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "bare")
    result = invoke("predict", "--model", tmp_path / "bare", "The cook boils the soup.")
    refused(result, tmp_path, "is a BertModel, an encoder without a head: it gives embeddings")
    assert result.stdout == ""
    result = invoke("predict", "--model", encoder, "The cook boils the soup.")
    refused(result, tmp_path, "it finds hidden words and has no other head; text 1 has no [MASK]")
    result = invoke("predict", "--model", encoder, "The cook boils the [MASK].")
    assert len(json.loads(result.stdout)["masks"][0]) == 5


def test_predict_asks_for_a_question_if_the_model_answers_some(invoke, encoder, classifier, tmp_path):
    config = transformers.AutoConfig.from_pretrained(encoder)
    transformers.BertForQuestionAnswering(config).save_pretrained(tmp_path / "answers")
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "answers")
    text = "The cook boils the soup."
    missing = "--question: needed by models that answer questions, and by no others"
    refused(invoke("predict", "--model", tmp_path / "answers", text), tmp_path, missing)
    refused(invoke("predict", "--model", classifier, text, "--question", "Who?"), tmp_path, missing)
    result = invoke("predict", "--model", tmp_path / "answers", text, "--question", "Who?")
    (answer,) = json.loads(result.stdout)["answers"]
    assert text[answer["start"] : answer["end"]] == answer["text"]


def test_predict_reads_lines_from_a_file_and_from_standard_input(invoke, classifier, tmp_path):
    (tmp_path / "lines.txt").write_text("The cook boils soup.\n\nThe sailor steers a boat.\n")
    assert len(invoke("predict", "--model", classifier, "--file", "lines.txt").stdout.splitlines()) == 2
    assert (
        len(invoke("predict", "--model", classifier, "--file", "-", stdin="One.\n").stdout.splitlines()) == 1
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model", "nowhere", "text"], "model: 'nowhere' is not a folder with a transformers model"),
        (["--model", "nowhere"], "predict: no text; give TEXTS, --file, or --input and --output"),
        (["--model", "nowhere", "--file", "gone.txt"], "--file: 'gone.txt' does not exist"),
        (["--model", "nowhere", "--file", "bytes.txt"], "--file: 'bytes.txt' is not UTF-8 text (byte 1)"),
    ],
)
def test_predict_refuses_what_it_cannot_read(arguments, part, invoke, tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"a\xff")
    refused(invoke("predict", *arguments), tmp_path, part)


FREE = "a free port"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere", "--replicas", "4,1"], "replicas [4, 1] should be [min, max]"),
        (["nowhere", "--replicas", "many"], "replicas.0: 'many' is not allowed"),
        (["nowhere", "--port", "0"], "port: 0 is not allowed"),
        (["a", "b"], "serve: several models need names; write NAME=MODEL"),
        (["a=b", "c"], "serve: 'c' needs a name too; write NAME=MODEL"),
        (["a=b", "a=c"], "serve: the name 'a' is given twice"),
        (["a=nowhere", "b=x", "--port", FREE], "model: 'nowhere' is not a folder with a transformers"),
        (["./a=b", "--port", FREE], "model: './a=b' is not a folder with a transformers model"),
        (["nowhere", "--port", FREE], "model: 'nowhere' is not a folder with a transformers model"),
    ],
)
def test_serve_refuses_bad_settings(arguments, part, invoke, tmp_path):
    result = invoke("serve", *(str(free_port()) if argument == FREE else argument for argument in arguments))
    assert part in result.stderr
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def headway(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", "headway.cli.main", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
