"""The step `export`: graphs that other runtimes open, and that answer as PyTorch does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import transformers

from encoder_folders import save_encoder
from headway.compress.export import load_graph, require_packages
from headway.config.base import ConfigError
from headway.config.compression.export import ExportConfig
from headway.config.compression.static import StaticConfig
from headway.engine.model.encoder import load_as_saved
from headway.inference.model import EncoderModel
from headway.steps import export
from headway.steps.export import run_export
from headway.steps.static import run_static

FORMATS = ["onnx", "openvino"]


def config_of(folder, source, format, **others) -> ExportConfig:
    given = {"model": str(folder), "texts": {"source": str(source)}, "format": format, "samples": 70}
    return ExportConfig.model_validate(given | others)


def onnx_logits(folder, inputs):
    session = onnxruntime.InferenceSession(
        str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], inputs)[0]


def openvino_logits(folder, inputs):
    graph = openvino.Core().read_model(str(folder / "openvino" / "openvino_model.xml"))
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(inputs)["logits"]


@pytest.mark.parametrize(("format", "run"), [("onnx", onnx_logits), ("openvino", openvino_logits)])
def test_a_classifiers_graph_gives_transformers_logits(
    format, run, classifier, labelled_file, texts, make_context
):
    result = run_export(config_of(classifier, labelled_file, format), make_context("export"))
    assert result.summary["texts"] == 70
    assert result.summary["largest_difference"] < 1e-4
    assert result.headline.startswith(f"{format}: at most ")

    folder = make_context("export").folder / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    # Neither the number of texts nor their length is that of the example in the graph.
    for some in (texts[:1], texts[5:18]):
        inputs = tokenizer(some, padding=True, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits
        found = run(folder, {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    # It is served as before.
    assert EncoderModel(folder, "fp32").description.labels == ("garden", "harbour", "kitchen")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("kind", "operation", "outputs"),
    [
        ("modernbert", "classify", ["logits"]),
        ("distilbert", "answer", ["start_logits", "end_logits"]),
        ("roberta", "embed", ["last_hidden_state"]),
    ],
)
def test_other_encoders_and_heads_have_graphs_too(
    kind, operation, outputs, format, labelled_file, tmp_path, make_context
):
    folder = save_encoder(tmp_path / kind, kind, operation)
    result = run_export(config_of(folder, labelled_file, format), make_context("export"))
    assert result.summary["largest_difference"] < 1e-4
    model = load_as_saved(folder)
    inputs = {"input_ids": np.asarray([[2, 7, 9, 3]]), "attention_mask": np.ones((1, 4), np.int64)}
    if kind == "roberta":
        inputs["token_type_ids"] = np.zeros((1, 4), np.int64)
    found = load_graph(format, make_context("export").folder / "model")(inputs)
    assert list(found) == outputs
    assert found[outputs[0]].shape[0] == 1 and model.config.model_type == kind


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_differs_from_pytorch_is_refused_and_nothing_is_kept(
    format, labelled_file, tmp_path, make_context, monkeypatch
):
    folder = save_encoder(tmp_path / "bert", "bert", "classify")
    sound = export.load_graph

    def wrong(*arguments):
        run = sound(*arguments)
        return lambda inputs: {name: value + 0.01 for name, value in run(inputs).items()}

    monkeypatch.setattr(export, "load_graph", wrong)
    context = make_context("export")
    with pytest.raises(ConfigError, match=rf"^tolerance: 0\.001, but the {format} graph of .* up to 0\.01"):
        run_export(config_of(folder, labelled_file, format), context)
    assert not (context.folder / "model").exists()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs an extra \(openvino\); .*pip install 'headway\[openvino\]'"
    ):
        require_packages("openvino")


def test_a_table_of_token_vectors_has_no_graph(encoder, labelled_file, make_context):
    settings = {"model": str(encoder), "texts": {"source": str(labelled_file)}}
    table = run_static(StaticConfig.model_validate(settings), make_context("static")).output
    with pytest.raises(ConfigError, match="a table of token vectors, without a graph to export"):
        run_export(config_of(table, labelled_file, "onnx"), make_context("export"))
