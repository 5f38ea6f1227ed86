"""The same classifier rounded to int8 by hand, with ONNX Runtime and with OpenVINO.

Both get what their own documentation recommends: dynamic quantisation of all products for ONNX Runtime, and
for OpenVINO static quantisation by sentence-transformers, calibrated on training texts. Texts are padded to
the longest of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.compress.search.measuring import Answer


class Peer(NamedTuple):
    """A model of somebody else's.

    Attributes:
        scores: takes texts and returns the scores of classes, float32, shape (texts, classes).
        size: bytes of what it needs to run.
    """

    scores: Callable[[Sequence[str]], np.ndarray]
    size: int

    @property
    def answer(self) -> Answer:
        """As it is timed."""
        return self.scores


def onnx_int8(folder: Path, work: Path, texts: Sequence[str], length: int) -> Peer:
    """Exported with PyTorch's exporter, quantised dynamically with `quantize_dynamic`."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModelForSequenceClassification

    work.mkdir(parents=True, exist_ok=True)
    exported, quantised = work / "model.onnx", work / "model.int8.onnx"
    if not quantised.is_file():

        class Classifier(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = AutoModelForSequenceClassification.from_pretrained(
                    folder, attn_implementation="eager", dtype=torch.float32
                ).eval()

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

        ids = torch.ones(2, 8, dtype=torch.long)
        names = ["input_ids", "attention_mask"]
        axes = {name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}}
        torch.onnx.export(
            Classifier(),
            (ids, ids),
            str(exported),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
        )
        quantize_dynamic(exported, quantised, weight_type=QuantType.QInt8, per_channel=True)
    session = onnxruntime.InferenceSession(str(quantised), providers=["CPUExecutionProvider"])
    tokenize = _tokenizer(folder, length)

    def scores(texts: Sequence[str]) -> np.ndarray:
        return session.run(None, tokenize(texts))[0]

    return Peer(scores, quantised.stat().st_size + (folder / "tokenizer.json").stat().st_size)


def openvino_int8(folder: Path, work: Path, texts: Sequence[str], length: int) -> Peer:
    """A cross-encoder of sentence-transformers, quantised with `export_static_quantized_openvino_model`."""
    from sentence_transformers import CrossEncoder, export_static_quantized_openvino_model

    name = "openvino_model_qint8_quantized.xml"
    if not (work / "openvino" / name).is_file():
        whole = CrossEncoder(str(folder), backend="openvino", max_length=length)
        whole.save_pretrained(str(work))
        export_static_quantized_openvino_model(whole, None, str(work))
    model = CrossEncoder(
        str(work), backend="openvino", max_length=length, model_kwargs={"file_name": f"openvino/{name}"}
    )
    tokenize = _tokenizer(folder, length)

    def scores(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.model(**tokenize(texts)).logits)

    files = (work / "openvino").glob(f"{Path(name).stem}.*")
    size = sum(path.stat().st_size for path in files)
    return Peer(scores, size + (folder / "tokenizer.json").stat().st_size)


PEERS = {"ONNX Runtime int8": onnx_int8, "OpenVINO int8": openvino_int8}


def _tokenizer(folder: Path, length: int) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    """Texts into the arrays that both runtimes take."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()

    def tokenize(texts: Sequence[str]) -> dict[str, np.ndarray]:
        read = tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.asarray([one.ids for one in read], np.int64),
            "attention_mask": np.asarray([one.attention_mask for one in read], np.int64),
        }

    return tokenize
