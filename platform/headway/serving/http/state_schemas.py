"""What the server tells of itself, typed: which models are served, and which versions are tried."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class TrialReport(BaseModel):
    """How a version that is tried does beside the one that answers."""

    model: str
    version: str
    against: str = Field(description="the version that answers")
    percent: float = Field(description="of the requests are answered by it")
    shadow_percent: float = Field(description="of the others are compared")
    answered: int = Field(description="requests that went to it")
    waiting: int = Field(description="requests that wait to be compared")
    shed: int = Field(description="requests that were not compared because no replica was idle")
    failed: int = Field(
        description="requests that one of the two could not answer, or answered in another shape"
    )
    problem: str | None = Field(description="why the last of them failed")
    operations: dict[str, dict[str, Any]] = Field(
        description="agreement, greatest difference or least cosine; milliseconds of both, on an idle replica"
    )


class TrialsResponse(BaseModel):
    """All that is tried at present."""

    object: Literal["list"]
    data: list[TrialReport]


class ServedModel(BaseModel):
    """A model that answers."""

    id: str
    object: Literal["model"]
    version: str
    refused: dict[str, str] = Field(description="versions that failed their check, and why")
    abilities: list[str]
    labels: list[str]
    max_length: int
    hidden_size: int
    embedding_size: int = Field(description="numbers in a vector of /v1/embeddings")
    layers: int
    heads: int
    mask: str | None


class ModelsResponse(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ServedModel]
