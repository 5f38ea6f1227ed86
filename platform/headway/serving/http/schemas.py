"""The bodies of requests and answers, typed; the OpenAPI description is made from them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXTS = 256
MAX_CHARACTERS = 100_000

_SAMPLE_TEXTS = 8
_SAMPLE_CHARACTERS = 2_000

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Overlong = Literal["truncate", "window", "reject"]


class Request(BaseModel):
    """The fields of every request. An unknown field is an error."""

    model_config = ConfigDict(extra="forbid")

    model: Text | None = Field(
        None, description="which of the served models; needed only if there are several"
    )

    def sample(self) -> Self:
        """A request like this one, short enough to be computed twice more for a comparison of versions."""
        return self


class TextsRequest(Request):
    """One text, or several."""

    input: Texts = Field(description=f"a text, or a list of up to {MAX_TEXTS}")
    overlong: Overlong = Field(
        "truncate",
        description="what to do with a text that is too long: cut it, read it in windows, or refuse it",
    )

    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    def sample(self) -> Self:
        """The beginnings of the first texts."""
        return self.model_copy(update={"input": _beginnings(self.texts())})


class EmbeddingsRequest(TextsRequest):
    """The fields of OpenAI's API, and `overlong`."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="numbers to keep, normalized again"
    )
    user: Text | None = Field(None, description="ignored")


class FillMaskRequest(TextsRequest):
    """Texts with masked words, written as the tokenizer's mask."""

    candidates: Annotated[int, Field(ge=1, le=100)] = 5


class RerankRequest(Request):
    """A query, and the documents to order."""

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False

    def sample(self) -> Self:
        """The beginnings of the first documents."""
        return self.model_copy(update={"documents": _beginnings(self.documents)})


class AnswerRequest(Request):
    """A question, and the context that answers it. A long context is read in windows."""

    question: Text
    context: Text
    candidates: Annotated[int, Field(ge=1, le=20)] = 1

    def sample(self) -> Self:
        """The same question, and the beginning of the context."""
        return self.model_copy(update={"context": self.context[:_SAMPLE_CHARACTERS]})


class AttentionRequest(Request):
    """A text, of which the first tokens are looked at."""

    input: Text
    tokens: Annotated[int, Field(ge=3, le=128)] = Field(64, description="maximum number of tokens looked at")


class Answered(BaseModel):
    """The fields of every answer: which version of which model gave it."""

    model: str
    version: str


class Usage(BaseModel):
    """Number of tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or little-endian float32 in base64")


class EmbeddingsResponse(Answered):
    """The fields of OpenAI's API, and the version."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    usage: Usage


class ClassificationItem(BaseModel):
    """The classes of one text."""

    index: int
    label: str
    score: float = Field(description="probability of `label`")
    scores: dict[str, float] = Field(description="probability of every label")


class ClassifyResponse(Answered):
    """One item for each text, in their order."""

    data: list[ClassificationItem]


class RankedItem(BaseModel):
    """One document; `index` is that in the request."""

    index: int
    relevance_score: float
    document: str | None = None


class RerankResponse(Answered):
    """Documents, the most relevant first."""

    results: list[RankedItem]


class CandidateItem(BaseModel):
    """A word that may stand at a mask."""

    token: str
    score: float


class FilledItem(BaseModel):
    """The candidates for each mask of one text, in their order."""

    index: int
    masks: list[list[CandidateItem]]


class FillMaskResponse(Answered):
    """One item for each text, in their order."""

    data: list[FilledItem]


class EntityItem(BaseModel):
    """A labelled part of a text, from character `start` to `end`."""

    label: str
    text: str
    start: int
    end: int
    score: float


class TaggedItem(BaseModel):
    """The entities of one text."""

    index: int
    entities: list[EntityItem]


class TokensResponse(Answered):
    """One item for each text, in their order."""

    data: list[TaggedItem]


class AnswerItem(BaseModel):
    """A part of the context, from character `start` to `end`; empty if the context may have no answer."""

    text: str
    start: int
    end: int
    score: float


class AnswerResponse(Answered):
    """The likeliest answers, best first."""

    answers: list[AnswerItem]


class AttentionResponse(Answered):
    """`weights[layer][head][from][to]` says how much one token attends to another. Each row sums to 1."""

    tokens: list[str]
    weights: list[list[list[list[float]]]]


class Error(BaseModel):
    """What went wrong, for people and for programs."""

    type: str
    message: str
    param: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer whose status is not 200."""

    error: Error


def _beginnings(texts: list[str]) -> list[str]:
    return [text[:_SAMPLE_CHARACTERS] for text in texts[:_SAMPLE_TEXTS]]
