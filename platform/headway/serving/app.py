"""The HTTP application: what a client may ask of a replica, and what it is answered.

The class is pickled by value on its way to a replica, so what is heavy is imported inside it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

MOST_TEXTS = 256
MOST_CHARACTERS = 100_000

http = FastAPI(title="Headway", description="Encoders over HTTP.")


class ClassifyRequest(BaseModel):
    """A text, or several."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[str] = Field(max_length=MOST_CHARACTERS, description="a text, or up to 256 texts")

    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class Classification(BaseModel):
    """The answer for one text."""

    index: int
    label: str
    score: float = Field(description="probability of the label")
    scores: dict[str, float] = Field(description="probability of every label")


class ClassifyResponse(BaseModel):
    """Answers in the order of the texts, and the model that gave them."""

    model: str
    version: str
    data: list[Classification]


@serve.deployment
@serve.ingress(http)
class EncoderApp:
    """One replica: the model in memory, and requests packed together as they come."""

    def __init__(self, folder: str, name: str, version: str, max_batch_tokens: int, threads: int) -> None:
        from pathlib import Path

        import torch

        from headway.serving.classifier import Classifier

        torch.set_num_threads(threads)
        self._classifier = Classifier(Path(folder), max_batch_tokens)
        self._classifier.predict(["Warm up."])
        self._name, self._version = name, version

    @http.post("/v1/classify")
    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        """The most probable class of each text, and the probabilities of all."""
        from fastapi import HTTPException

        texts = request.texts()
        if not texts or len(texts) > MOST_TEXTS:
            raise HTTPException(422, f"input: {len(texts)} texts; allowed: 1 to {MOST_TEXTS}")
        if max(len(text) for text in texts) > MOST_CHARACTERS:
            raise HTTPException(422, f"input: a text may have {MOST_CHARACTERS:,} characters at most")
        answers = await self._predict(texts)
        data = [Classification(index=i, **answer._asdict()) for i, answer in enumerate(answers)]
        return ClassifyResponse(model=self._name, version=self._version, data=data)

    async def _predict(self, texts: list[str]) -> list[Any]:
        return await self._predict_together(texts)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def _predict_together(self, requests: list[list[str]]) -> list[list[Any]]:
        """All requests that wait, in one go; the thread leaves the event loop free."""
        import asyncio

        flat = [text for texts in requests for text in texts]
        answers = iter(await asyncio.to_thread(self._classifier.predict, flat))
        return [[next(answers) for _ in texts] for texts in requests]

    @http.get("/v1/models")
    def models(self) -> dict[str, Any]:
        """What is served."""
        entry = {"id": self._name, "version": self._version, "labels": self._classifier.labels}
        return {"data": [entry]}

    @http.get("/health/live")
    def live(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @http.get("/health/ready")
    def ready(self) -> dict[str, str]:
        """The model is loaded and has answered once."""
        return {"status": "ready", "model": self._name, "version": self._version}
