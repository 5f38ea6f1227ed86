"""Exports a transformers model to ONNX or OpenVINO, and runs the result.

The graph takes padded rows, `input_ids` and `attention_mask` and, if the encoder has token types,
`token_type_ids`: int64, (batch, length). Both sizes may differ from call to call. Its outputs have the names
that transformers gives them, so Optimum and sentence-transformers open the folder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.config.compression.export import ExportFormat
from headway.engine.model.unpadded import token_type_arguments

GRAPHS: dict[ExportFormat, str] = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
"""Where a graph lies in a model's folder: the same place as on the Hugging Face Hub."""
_PACKAGES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}
_OUTPUTS = ("logits", "start_logits", "end_logits", "prediction_logits", "last_hidden_state")
"""Names of outputs that are exported; the last hidden state only if there is no head."""

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""A graph that runs: inputs and outputs by their names."""


def require_packages(format: ExportFormat) -> None:
    """Refuse a format whose extra is not installed.

    Raises:
        ConfigError: the message says how to install it.
    """
    missing = [name for name in _PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format: {format!r} needs an extra ({', '.join(missing)}); install it with: "
            f"pip install 'headway[{format}]'"
        )


def padded_inputs(model: PreTrainedModel, rows: list[np.ndarray]) -> dict[str, Tensor]:
    """The inputs of a graph for some texts, from the token ids of each."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), model.config.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
        mask[number, : len(row)] = 1
    types = token_type_arguments(model.config, torch.zeros_like(ids))
    return {"input_ids": ids, "attention_mask": mask} | {name: value[0] for name, value in types.items()}


class Exportable(nn.Module):
    """A transformers model that returns a tuple of its outputs.

    Args:
        model: in float32, with attention of transformers' own.
        inputs: of any texts; shows what it returns.

    Attributes:
        names: of the outputs.
    """

    def __init__(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            returned = model(**inputs)
        found = [name for name in _OUTPUTS if name in returned]
        self.names = found[:-1] if found[-1] == "last_hidden_state" and len(found) > 1 else found

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The outputs, in the order of `names`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        returned: Any = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(returned[name] for name in self.names)


def write_graph(
    exportable: Exportable, inputs: Mapping[str, Tensor], format: ExportFormat, folder: Path
) -> None:
    """Write a graph into a model's folder.

    Args:
        exportable: the model.
        inputs: of two texts or more, of several tokens; only their names and types are in the graph.
        format: of the graph.
        folder: with the model's other files.
    """
    path = folder / GRAPHS[format]
    path.parent.mkdir(exist_ok=True)
    sizes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(exportable, (), dict(inputs), dynamic_shapes=sizes, strict=False)
    if format == "onnx":
        names = exportable.names
        torch.onnx.export(program, f=str(path), external_data=False, verbose=False, output_names=names)
        return
    import openvino

    graph = openvino.convert_model(program)
    for output, name in zip(graph.outputs, exportable.names, strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def load_graph(format: ExportFormat, folder: Path) -> Run:
    """A graph in a model's folder, ready to run on the CPU in float32, in as many threads as PyTorch."""
    path = str(folder / GRAPHS[format])
    if format == "onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))
    import openvino

    # OpenVINO would compute in bf16 if the CPU is fast in that.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    return lambda inputs: {output.get_any_name(): value for output, value in compiled(dict(inputs)).items()}
