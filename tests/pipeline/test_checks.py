"""What is told of a pipeline's inputs before its first step runs."""

from __future__ import annotations

import json

import pytest

from headway.config.base import ConfigError
from headway.config.pipeline import PipelineConfig
from headway.display import Display
from headway.pipeline.run import run_pipeline


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label,text_b\nSome text,a,Another\n")
    return str(path)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "Some text", "labl": "a"}) + "\n")
    return str(path)


@pytest.fixture
def told(tmp_path):
    """What is wrong with a second step; the first, which is in order, has not run."""

    def mistakes(step: dict, first: dict | None = None) -> list[str]:
        source = tmp_path / "first.txt"
        source.write_text("A text.")
        steps = {"first": first or {"use": "corpus", "source": str(source)}, "second": step}
        config = PipelineConfig.model_validate({"name": "n", "steps": steps})
        with pytest.raises(ConfigError) as caught:
            run_pipeline(config, tmp_path / "runs", Display(quiet=True))
        assert not (tmp_path / "runs").exists()
        return str(caught.value).splitlines()

    return mistakes


MODEL = "is not a folder with a transformers model (no config.json)"


def test_folders_that_are_not_there_are_told(told, texts):
    task = {"source": texts}
    assert told({"use": "finetune", "model": "gone", "task": task}) == [f"second.model: 'gone' {MODEL}"]
    assert told({"use": "finetune", "model": "gone", "task": "away"}) == [
        f"second.model: 'gone' {MODEL}",
        "second.task: 'away' is not a prepared task (no task.json)",
    ]
    assert told({"use": "pretrain", "corpus": "gone", "model": "away"}) == [
        "second.corpus: 'gone' is not a prepared corpus (no corpus.json)",
        f"second.model: 'away' {MODEL}",
    ]
    assert told({"use": "corpus", "source": texts, "tokenizer": "gone"}) == [
        "second.tokenizer: 'gone' is not a folder"
    ]
    evaluate = {"use": "evaluate", "model": "models:/x@champion", "task": task}
    assert told(evaluate | {"encoder": "gone", "beside": {"other": "away"}}) == [
        f"second.beside.other: 'away' {MODEL}",
        f"second.encoder: 'gone' {MODEL}",
    ]
    assert told({"use": "serve", "models": {"a": {"model": "gone"}}}) == [
        f"second.models.a.model: 'gone' {MODEL}"
    ]


def test_folders_inside_a_sweeps_mapping_are_told(told, texts):
    corpus = {"source": texts, "tokenizer": "gone"}
    assert told({"use": "sweep", "pretrain": {"corpus": corpus, "model": "away"}}) == [
        "second.pretrain.corpus.tokenizer: 'gone' is not a folder",
        f"second.pretrain.model: 'away' {MODEL}",
    ]


def test_what_an_earlier_step_makes_is_not_looked_for(told, texts, rows):
    step = {"use": "finetune", "model": "${first}", "task": {"source": rows}}
    assert told(step) == [f"second.task.label_column: {rows!r} has no column 'label'; did you mean 'labl'?"]


def test_columns_that_a_source_lacks_are_told(told, texts, rows):
    task = {"source": texts, "text_column": "body", "pair_column": "text_b", "test_source": rows}
    assert told({"use": "finetune", "model": "${first}", "task": task}) == [
        f"second.task.text_column: {texts!r} has no column 'body'; known: label, text, text_b",
        f"second.task.text_column: {rows!r} has no column 'body'; known: labl, text",
        f"second.task.pair_column: {rows!r} has no column 'text_b'; did you mean 'text'?",
        f"second.task.label_column: {rows!r} has no column 'label'; did you mean 'labl'?",
    ]
    assert told({"use": "corpus", "source": texts, "text_column": "body"}) == [
        f"second.text_column: {texts!r} has no column 'body'; known: label, text, text_b"
    ]


def sweep(source, **more):
    return {"use": "sweep", "model": "${first}", "task": {"source": source}} | more


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "f1_macro"}, "second.metric: 'f1_macro' is not measured; did you mean 'macro_f1'?"),
        (
            {"metric": ["accuracy", "latency"], "scheduler": "fifo"},
            "second.metric: 'latency' is not measured; did you mean 'latency_ms'?",
        ),
        (
            {"search": {"optimizer.learning_rat": "uniform(0, 1)"}},
            "second.finetune.optimizer.learning_rat: unknown setting; did you mean 'learning_rate'?",
        ),
        ({"search": {"optimizer.learning_rate": "normal(0, 1)"}}, "second.search.optimizer.learning_rate: "),
        ({"search": {"workers": [1, 2]}}, "second.search.workers: all trials of a sweep have the same"),
        (
            {"search": {"label_smoothing": "uniform(0, 0.1)"}, "algorithm": "grid"},
            "second.search.label_smoothing: algorithm grid needs a list of values",
        ),
    ],
)
def test_a_sweep_that_no_trial_could_run_in_is_told(more, message, told, texts):
    [found] = told(sweep(texts, **more))
    assert found.startswith(message)


def test_a_sweep_over_pretraining_has_measures_of_its_own(told, texts):
    pretrain = {"corpus": {"source": texts}, "objective": ["mlm"]}
    search = {"optimizer.learning_rate": [1e-3, 1e-4]}
    step = {"use": "sweep", "pretrain": pretrain, "search": search, "metric": "accuracy"}
    assert told(step) == ["second.metric: 'accuracy' is not measured; did you mean 'mlm_accuracy'?"]


def test_an_output_that_a_step_does_not_have_is_told(told, texts):
    step = {"use": "finetune", "model": "${first.bets}", "task": {"source": texts}}
    first = sweep(texts, model="models:/x@y")
    assert told(step, first) == ["second: ${first.bets}: step 'first' has no output 'bets'; it has: best"]
