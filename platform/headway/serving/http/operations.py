"""Every operation of the server, in one table: what it takes, how it is asked, what it gives.

Routes, the fast path, the OpenAPI description, metrics and comparisons of versions all follow from the table,
and tests hold the client and the page to it. To add an operation, add its schemas and one entry here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import BaseModel

from headway.serving.http import schemas
from headway.serving.rollout.comparison import (
    Comparison,
    VectorComparison,
    compare_answers,
    compare_classes,
    compare_entities,
    compare_masked_words,
    compare_rankings,
)
from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.messages import Answer
from headway.serving.scheduling.service import ModelService

_Body = TypeVar("_Body", bound=schemas.Request)


@dataclass(frozen=True)
class ServedOperation(Generic[_Body]):
    """What can be asked of a model over HTTP.

    Attributes:
        name: the path below `/v1/`; the ability, if not every encoder has it; the label in reports.
        description: for people.
        request: type of the body.
        response: type of the answer, for the OpenAPI description.
        ask: asks one version what the body says, for a caller.
        content: the answer's fields besides `model` and `version`.
        comparison: makes an empty comparison of two versions' results; None if they are never compared.
    """

    name: str
    description: str
    request: type[_Body]
    response: type[BaseModel]
    ask: Callable[[_Body, ModelService, Caller], Coroutine[Any, Any, Answer]]
    content: Callable[[_Body, Answer], dict[str, Any]]
    comparison: Callable[[], Comparison] | None


def _embeddings(body: schemas.EmbeddingsRequest, answer: Answer) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, body)}
        for i, vector in enumerate(answer.results)
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return {"object": "list", "data": data, "usage": usage}


def _encoded(vector: np.ndarray, body: schemas.EmbeddingsRequest) -> np.ndarray | str:
    if body.dimensions is not None:
        vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return np.ascontiguousarray(vector)


def _classes(body: schemas.TextsRequest, answer: Answer) -> dict[str, Any]:
    best = [max(scores, key=scores.__getitem__) for scores in answer.results]
    return {
        "data": [
            {"index": i, "label": label, "score": scores[label], "scores": scores}
            for i, (label, scores) in enumerate(zip(best, answer.results, strict=True))
        ]
    }


def _ranking(body: schemas.RerankRequest, answer: Answer) -> dict[str, Any]:
    order = sorted(range(len(body.documents)), key=lambda i: -answer.results[i])[: body.top_n]
    return {
        "results": [
            {
                "index": i,
                "relevance_score": answer.results[i],
                "document": body.documents[i] if body.return_documents else None,
            }
            for i in order
        ]
    }


def _masked_words(body: schemas.FillMaskRequest, answer: Answer) -> dict[str, Any]:
    return {
        "data": [
            {
                "index": i,
                "masks": [[{"token": token, "score": score} for token, score in mask] for mask in masks],
            }
            for i, masks in enumerate(answer.results)
        ]
    }


def _entities(body: schemas.TextsRequest, answer: Answer) -> dict[str, Any]:
    return {
        "data": [
            {"index": i, "entities": [entity._asdict() for entity in entities]}
            for i, entities in enumerate(answer.results)
        ]
    }


def _answers(body: schemas.AnswerRequest, answer: Answer) -> dict[str, Any]:
    return {"answers": [span._asdict() for span in answer.results]}


def _attention(body: schemas.AttentionRequest, answer: Answer) -> dict[str, Any]:
    tokens, weights = answer.results
    return {"tokens": tokens, "weights": np.round(weights.astype(np.float32), 4)}


OPERATIONS: tuple[ServedOperation[Any], ...] = (
    ServedOperation(
        name="embeddings",
        description="A vector of unit length for each text, as in OpenAI's API.",
        request=schemas.EmbeddingsRequest,
        response=schemas.EmbeddingsResponse,
        ask=lambda body, service, caller: service.embed(body.texts(), body.overlong, caller),
        content=_embeddings,
        comparison=VectorComparison,
    ),
    ServedOperation(
        name="classify",
        description="The most probable class of each text, and the probabilities of all classes.",
        request=schemas.TextsRequest,
        response=schemas.ClassifyResponse,
        ask=lambda body, service, caller: service.classify(body.texts(), body.overlong, caller),
        content=_classes,
        comparison=compare_classes,
    ),
    ServedOperation(
        name="rerank",
        description="Documents, ordered by how well they fit the query.",
        request=schemas.RerankRequest,
        response=schemas.RerankResponse,
        ask=lambda body, service, caller: service.rerank(body.query, body.documents, caller),
        content=_ranking,
        comparison=compare_rankings,
    ),
    ServedOperation(
        name="fill-mask",
        description="The likeliest words for each mask.",
        request=schemas.FillMaskRequest,
        response=schemas.FillMaskResponse,
        ask=lambda body, service, caller: service.fill_mask(
            body.texts(), body.candidates, body.overlong, caller
        ),
        content=_masked_words,
        comparison=compare_masked_words,
    ),
    ServedOperation(
        name="tokens",
        description="The entities in each text.",
        request=schemas.TextsRequest,
        response=schemas.TokensResponse,
        ask=lambda body, service, caller: service.tokens(body.texts(), body.overlong, caller),
        content=_entities,
        comparison=compare_entities,
    ),
    ServedOperation(
        name="answer",
        description="The likeliest answers to a question in a context.",
        request=schemas.AnswerRequest,
        response=schemas.AnswerResponse,
        ask=lambda body, service, caller: service.answer(
            body.question, body.context, body.candidates, caller
        ),
        content=_answers,
        comparison=compare_answers,
    ),
    ServedOperation(
        name="attention",
        description="How much each token attends to every other, in each layer and head.",
        request=schemas.AttentionRequest,
        response=schemas.AttentionResponse,
        ask=lambda body, service, caller: service.attention(body.input, body.tokens, caller),
        content=_attention,
        comparison=None,
    ),
)
