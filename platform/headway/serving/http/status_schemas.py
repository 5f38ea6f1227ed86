"""What the server says about itself, typed: the served models, and the versions that challenge them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ChallengerReport(BaseModel):
    """How a challenger does beside the serving version."""

    model: str
    version: str
    against: str = Field(description="the serving version")
    percent: float = Field(description="percentage of requests that the challenger answers")
    shadow_percent: float = Field(description="percentage of the other requests that are compared")
    answered: int = Field(description="requests that the challenger answered")
    waiting: int = Field(description="requests that wait to be compared")
    shed: int = Field(description="requests that were not compared because no replica was idle")
    failed: int = Field(
        description="requests that one of the two could not answer, or answered in another shape"
    )
    problem: str | None = Field(description="why the last of them failed")
    operations: dict[str, dict[str, Any]] = Field(
        description="agreement and greatest difference, or lowest cosine; milliseconds of both versions on "
        "an idle replica"
    )


class ChallengersResponse(BaseModel):
    """All challengers."""

    object: Literal["list"]
    data: list[ChallengerReport]


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
    """All models."""

    object: Literal["list"]
    data: list[ServedModel]
