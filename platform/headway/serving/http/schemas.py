"""What clients send and what they are sent, typed; the OpenAPI page is made of these."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_TEXTS = 256
MOST_CHARACTERS = 100_000

_SAMPLE_TEXTS = 8
_SAMPLE_CHARACTERS = 2_000

Text = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Overlong = Literal["truncate", "window", "reject"]


class Request(BaseModel):
    """What all requests share; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")

    model: Text | None = Field(
        None, description="which of the served models; may be left out if there is one"
    )

    def sample(self) -> Self:
        """The same request, or its beginning: little enough that nobody minds waiting for it."""
        return self


class TextsRequest(Request):
    """A text, or several."""

    input: Texts = Field(description=f"a text, or up to {MOST_TEXTS}")
    overlong: Overlong = Field(
        "truncate", description="a text longer than the model reads: cut it, read it in windows, or refuse it"
    )

    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input

    def sample(self) -> Self:
        """Its first texts, and their beginnings."""
        return self.model_copy(update={"input": _beginnings(self.texts())})


class EmbeddingsRequest(TextsRequest):
    """As OpenAI's."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="keep so many, renormalised")
    user: Text | None = Field(None, description="not used")


class FillMaskRequest(TextsRequest):
    """Texts with hidden words, written as the tokenizer's mask."""

    candidates: Annotated[int, Field(ge=1, le=100)] = 5


class RerankRequest(Request):
    """A query and the documents to order."""

    query: Text
    documents: Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False

    def sample(self) -> Self:
        """The first documents, and their beginnings."""
        return self.model_copy(update={"documents": _beginnings(self.documents)})


class AnswerRequest(Request):
    """A question, and the text that answers it; a long text is read in windows."""

    question: Text
    context: Text
    candidates: Annotated[int, Field(ge=1, le=20)] = 1

    def sample(self) -> Self:
        """The same question of the text's beginning."""
        return self.model_copy(update={"context": self.context[:_SAMPLE_CHARACTERS]})


class AttentionRequest(Request):
    """A text to look into; only its first tokens are."""

    input: Text
    tokens: Annotated[int, Field(ge=3, le=128)] = Field(64, description="tokens looked at, at most")


class Answered(BaseModel):
    """What every answer tells: which version of which model gave it."""

    model: str
    version: str


class Usage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """One text's."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or little-endian float32 in base64")


class EmbeddingsResponse(Answered):
    """As OpenAI's, and the version."""

    object: Literal["list"]
    data: list[Embedding]
    usage: Usage


class Classification(BaseModel):
    """The answer for one text."""

    index: int
    label: str
    score: float = Field(description="probability of the label")
    scores: dict[str, float] = Field(description="probability of every label")


class ClassifyResponse(Answered):
    """Answers in the order of the texts."""

    data: list[Classification]


class Ranked(BaseModel):
    """One document."""

    index: int
    relevance_score: float
    document: str | None = None


class RerankResponse(Answered):
    """Documents, the most relevant first."""

    results: list[Ranked]


class Candidate(BaseModel):
    """A word for a hidden place."""

    token: str
    score: float


class Filled(BaseModel):
    """One text: the candidates of each of its hidden words, in their order."""

    index: int
    masks: list[list[Candidate]]


class FillMaskResponse(Answered):
    """Answers in the order of the texts."""

    data: list[Filled]


class Entity(BaseModel):
    """A stretch of a text; `text[start:end]`."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Tagged(BaseModel):
    """One text."""

    index: int
    entities: list[Entity]


class TokensResponse(Answered):
    """Answers in the order of the texts."""

    data: list[Tagged]


class Span(BaseModel):
    """A stretch of the context that may be the answer; empty if the context has none."""

    text: str
    start: int
    end: int
    score: float


class AnswerResponse(Answered):
    """The likeliest answers, best first."""

    answers: list[Span]


class AttentionResponse(Answered):
    """Who looks at whom: `weights[layer][head][from][to]`; each row sums to 1."""

    tokens: list[str]
    weights: list[list[list[list[float]]]]


class Error(BaseModel):
    """What went wrong, for people and for programs."""

    type: str
    message: str
    param: str | None = None


class ErrorResponse(BaseModel):
    """Every answer that is not 200."""

    error: Error


def _beginnings(texts: list[str]) -> list[str]:
    return [text[:_SAMPLE_CHARACTERS] for text in texts[:_SAMPLE_TEXTS]]
