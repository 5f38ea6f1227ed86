"""The step `corpus`: what it made is logged, and what it left out is told."""

from __future__ import annotations

import gzip
import json

import pytest
from mlflow import MlflowClient

from headway.config.base import ConfigError
from headway.config.corpora.cleaning import CleaningConfig
from headway.config.corpus import CorpusConfig
from headway.data.corpus.corpus import open_corpus
from headway.display import Display
from headway.runs.lineage.step_run import recorded_run
from headway.steps.corpus import run_corpus


@pytest.fixture
def config(texts, tmp_path) -> CorpusConfig:
    """The texts in two compressed files, with some that are bad."""
    lines = [json.dumps({"text": text}) for text in texts] + ["not JSON", json.dumps({"text": "12 34 56"})]
    for number in range(2):
        content = "\n".join(lines[number::2]).encode()
        (tmp_path / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(content))
    return CorpusConfig(
        source=f"{tmp_path}/part-*.jsonl.gz",
        vocab_size=300,
        max_length=32,
        on_bad_input="skip",
        clean=CleaningConfig(max_repeated_words=1.0),
        near_duplicates=0.9,
    )


def test_what_was_read_dropped_and_kept_is_told_and_logged(config, make_context, capsys):
    context = make_context("corpus")
    object.__setattr__(context, "display", Display())
    result = run_corpus(config, context)
    facts = open_corpus(context.root / "stores" / "corpora" / result.output.rpartition("/")[2]).facts
    kept = facts["documents"]["train"] + facts["documents"]["validation"]
    assert kept + facts["documents"]["near_duplicates"] == 120
    assert "near duplicates, 1 by rules" in result.headline
    shown = capsys.readouterr().out
    assert "bad input left out: 1 not JSON" in shown
    assert "part-0.jsonl.gz, line 61: not JSON: Expecting value" in shown
    run = MlflowClient(context.tracking.uri).get_run(recorded_run(context.folder))
    assert run.data.metrics["dropped_min_letters"] == 1
    assert run.data.metrics["bad_not_JSON"] == 1
    assert run.data.metrics["documents_train"] == facts["documents"]["train"]
    artifacts = MlflowClient(context.tracking.uri).list_artifacts(run.info.run_id)
    assert "card.md" in [artifact.path for artifact in artifacts]
    assert len(run.inputs.dataset_inputs) == 2


def test_bad_input_ends_the_step_with_its_place_and_the_next_try_goes_on(config, make_context):
    context = make_context("corpus")
    strict = config.model_copy(update={"on_bad_input": "fail"})
    with pytest.raises(ConfigError, match=r"part-0\.jsonl\.gz, line 61: not JSON: Expecting value$"):
        run_corpus(strict, context)
    assert run_corpus(config, context).summary["read"]["bad"] == {"not JSON": 1}
