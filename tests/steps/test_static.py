"""The step `static`, and what becomes of its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mlflow import MlflowClient
from sentence_transformers import SentenceTransformer

import headway
from headway.config.base import ConfigError
from headway.config.compression.static import StaticConfig
from headway.config.register import RegisterConfig
from headway.engine.model.encoder import load_as_saved
from headway.inference.predictor import Predictor
from headway.steps.register import run_register
from headway.steps.static import run_static
from headway.tracking import tracking_uri


def settings(encoder, labelled_file, **others) -> StaticConfig:
    given = {"model": str(encoder), "texts": {"source": str(labelled_file)}, "samples": 30}
    return StaticConfig.model_validate(given | others)


@pytest.fixture(scope="module")
def table(encoder, labelled_file, runs):
    """The folder of a table made of an encoder."""
    return headway.static(encoder, labelled_file, samples=30, runs=runs, quiet=True)


def test_a_table_finds_what_its_encoder_finds_and_is_faster(encoder, labelled_file, make_context):
    context = make_context("static")
    result = run_static(settings(encoder, labelled_file, frequencies="texts", dimensions=24), context)
    summary = result.summary
    assert summary["texts"] == 30
    assert summary["similarity_spearman"] > 0.3
    assert summary["static_bytes"] < summary["bytes"]
    assert 0.9 < summary["kept_variance"] <= 1.0
    assert f"{summary['speed_ratio_vs_fp32']:.0f} x as fast as fp32" in result.headline
    [run] = MlflowClient(tracking_uri(context.root)).search_runs(
        [MlflowClient(tracking_uri(context.root)).get_experiment_by_name(context.experiment).experiment_id],
        "attributes.run_name = 'static'",
    )
    assert run.data.metrics["similarity_spearman"] == pytest.approx(summary["similarity_spearman"])


def trained(table, labelled_file, runs, **more):
    """The folder of a table that was fine-tuned as a classifier."""
    settings = {"max_length": 48, "epochs": 8, "batch_size": 16, "learning_rate": 1e-2} | more
    return headway.finetune(str(labelled_file), model=table, runs=runs, quiet=True, **settings).path


def test_a_table_is_fine_tuned_registered_and_answers_like_any_model(
    table, labelled_file, other_pairs, runs, make_context
):
    before = load_as_saved(table).embedding.weight.detach().clone()
    folder = trained(table, labelled_file, runs)
    after = load_as_saved(folder).embedding.weight.detach()
    assert (before != after).any()
    assert not after[list(load_as_saved(folder).config.ignored_token_ids)].any()
    texts = [text for text, _ in other_pairs]
    rows = Predictor(folder, precision="fp32").rows(texts)
    right = np.mean([row["label"] == label for row, (_, label) in zip(rows, other_pairs, strict=True)])
    assert right > 0.9

    vectors = np.stack(
        [row["embedding"] for row in Predictor(folder, "embedding", precision="fp32").rows(["A rose."])]
    )
    reopened = SentenceTransformer(str(folder), device="cpu").encode(["A rose."])
    np.testing.assert_allclose(vectors, reopened, atol=1e-6)

    context = make_context("register", runs)
    result = run_register(RegisterConfig(model=str(folder), name="static-topics"), context)
    assert result.output == "models:/static-topics@champion"
    assert json.loads((folder / "golden.json").read_text())["outputs"]


def test_a_table_learns_from_a_teacher_alone(table, classifier, labelled_file, other_pairs, runs):
    folder = trained(table, labelled_file, runs, distill={"teacher": str(classifier), "labels": 0.0})
    texts = [text for text, _ in other_pairs]
    students, teachers = (
        [row["label"] for row in Predictor(model, precision="fp32").rows(texts)]
        for model in (folder, classifier)
    )
    assert np.mean([student == teacher for student, teacher in zip(students, teachers, strict=True)]) > 0.9


def test_a_table_trained_on_pairs_is_a_sentence_transformer(table, texts, tmp_path, runs):
    path = tmp_path / "pairs.jsonl"
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    path.write_text("".join(json.dumps({"text": one, "pair": other}) + "\n" for one, other in halves))
    columns = {"text_column": "text", "pair_column": "pair"}
    task = {"kind": "embeddings", "source": str(path), "max_length": 48} | columns
    folder = headway.finetune(
        model=table, task=task, epochs=2, batch_size=16, learning_rate=1e-2, runs=runs, quiet=True
    ).path
    short = [text[:80] for text in texts[:3]]  # sentence-transformers cuts no text
    found = [row["embedding"] for row in Predictor(folder, precision="fp32").rows(short)]
    expected = SentenceTransformer(str(folder), device="cpu").encode(short)
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-6)


def test_a_source_of_a_few_texts_is_refused(encoder, tmp_path, make_context):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"text": f"Text number {n} of a few."}) + "\n" for n in range(3)))
    with pytest.raises(ConfigError, match=r"^texts: .*few.jsonl' has 3 texts; at least 8 are needed$"):
        run_static(settings(encoder, path), make_context("static"))
