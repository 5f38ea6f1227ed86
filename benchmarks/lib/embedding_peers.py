"""How fast sentence-transformers embeds texts, as its user would and at its best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from headway.engine.hardware.peak_rate import synchronise
from lib.random_encoders import random_texts

_BATCH = 256


def encode_speed(folder: Path, device: torch.device, count: int) -> float:
    """Texts/s of `encode`, tokenising included."""
    model, texts = _encoder(folder, device), random_texts(count, 99)
    settings = {"batch_size": _BATCH, "show_progress_bar": False}
    model.encode(texts[: 2 * _BATCH], **settings)
    started = time.perf_counter()
    model.encode(texts, **settings)
    return len(texts) / (time.perf_counter() - started)


def forward_speed(folder: Path, device: torch.device, seconds: float) -> float:
    """Texts/s of the forward alone, on a batch that lies tokenised on the device, its results copied back."""
    model = _encoder(folder, device)
    tokenize = model.preprocess if hasattr(model, "preprocess") else model.tokenize
    features = tokenize(random_texts(_BATCH if device.type == "cuda" else 16, 99))
    inputs = {name: value.to(device) for name, value in features.items() if isinstance(value, torch.Tensor)}
    done, texts = 0, len(inputs["input_ids"])
    with torch.inference_mode():
        model(dict(inputs))
        synchronise(device)
        started = time.perf_counter()
        while time.perf_counter() < started + seconds:
            model(dict(inputs))["sentence_embedding"].cpu()
            done += texts
    return done / (time.perf_counter() - started)


def _encoder(folder: Path, device: torch.device) -> Any:
    from sentence_transformers import SentenceTransformer

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return SentenceTransformer(str(folder), device=str(device), model_kwargs={"dtype": dtype})
