"""What can be asked of a model over HTTP: one function an operation."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel

from headway.serving.http import schemas
from headway.serving.http.errors import ClientGoneError
from headway.serving.scheduling.messages import Answer
from headway.serving.scheduling.service import ModelService

TIMEOUT_HEADER = "x-request-timeout-seconds"

router = APIRouter(prefix="/v1")


def _gives(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI page: answers are made as JSON at once, without a detour through the model."""
    return {200: {"model": model}}


@router.post("/embeddings", responses=_gives(schemas.EmbeddingsResponse))
async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
    """A vector of unit length for each text, as OpenAI's API gives it."""
    answer = await _asked(request, body, lambda b, of, t: of.embed(b.texts(), b.overlong, t))
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, body)}
        for i, vector in enumerate(answer.results)
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return _json(answer, object="list", data=data, usage=usage)


@router.post("/classify", responses=_gives(schemas.ClassifyResponse))
async def classify(body: schemas.TextsRequest, request: Request) -> Response:
    """The most probable class of each text, and the probabilities of all."""
    answer = await _asked(request, body, lambda b, of, t: of.classify(b.texts(), b.overlong, t))
    data = [{"index": i, **_classification(scores)} for i, scores in enumerate(answer.results)]
    return _json(answer, data=data)


@router.post("/rerank", responses=_gives(schemas.RerankResponse))
async def rerank(body: schemas.RerankRequest, request: Request) -> Response:
    """Documents ordered by how well they fit the query."""
    answer = await _asked(request, body, lambda b, of, t: of.rerank(b.query, b.documents, t))
    order = sorted(range(len(body.documents)), key=lambda i: -answer.results[i])[: body.top_n]
    return _json(
        answer,
        results=[
            {
                "index": i,
                "relevance_score": answer.results[i],
                "document": body.documents[i] if body.return_documents else None,
            }
            for i in order
        ],
    )


@router.post("/fill-mask", responses=_gives(schemas.FillMaskResponse))
async def fill_mask(body: schemas.FillMaskRequest, request: Request) -> Response:
    """The likeliest words for each hidden one."""
    answer = await _asked(
        request, body, lambda b, of, t: of.fill_mask(b.texts(), b.candidates, b.overlong, t)
    )
    data = [
        {
            "index": i,
            "masks": [[{"token": token, "score": score} for token, score in mask] for mask in masks],
        }
        for i, masks in enumerate(answer.results)
    ]
    return _json(answer, data=data)


@router.post("/tokens", responses=_gives(schemas.TokensResponse))
async def tokens(body: schemas.TextsRequest, request: Request) -> Response:
    """The entities in each text."""
    answer = await _asked(request, body, lambda b, of, t: of.tokens(b.texts(), b.overlong, t))
    data = [
        {"index": i, "entities": [entity._asdict() for entity in found]}
        for i, found in enumerate(answer.results)
    ]
    return _json(answer, data=data)


@router.post("/answer", responses=_gives(schemas.AnswerResponse))
async def answer(body: schemas.AnswerRequest, request: Request) -> Response:
    """Where a text answers a question."""
    found = await _asked(request, body, lambda b, of, t: of.answer(b.question, b.context, b.candidates, t))
    return _json(found, answers=[span._asdict() for span in found.results])


@router.post("/attention", responses=_gives(schemas.AttentionResponse))
async def attention(body: schemas.AttentionRequest, request: Request) -> Response:
    """Which token looks at which, in every layer and head."""
    found = await _asked(request, body, lambda b, of, t: of.attention(b.input, b.tokens, t))
    names, weights = found.results
    return _json(found, tokens=names, weights=np.round(weights.astype(np.float64), 4).tolist())


def _service(request: Request, body: schemas.Request) -> ModelService:
    services: Mapping[str, ModelService] = request.app.state.services
    if body.model is None and len(services) == 1:
        return next(iter(services.values()))
    if body.model is None or body.model not in services:
        raise HTTPException(404, f"model: {body.model!r} is not served; served: {', '.join(services)}")
    return services[body.model]


def _timeout(request: Request) -> float:
    most: float = request.app.state.timeout
    asked = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = most if asked is None else float(asked)
    except ValueError:
        seconds = -1.0
    if not seconds > 0.0:
        raise HTTPException(422, f"{TIMEOUT_HEADER}: {asked!r} is no number of seconds above 0")
    return min(seconds, most)


_B = TypeVar("_B", bound=schemas.Request)


async def _asked(
    request: Request, body: _B, ask: Callable[[_B, ModelService, float], Coroutine[Any, Any, Answer]]
) -> Answer:
    """The answer of the version that serves, or of the one that is tried where the request is its share."""
    service, timeout = _service(request, body), _timeout(request)
    trial = service.trial
    if trial is None:
        return await _unless_gone(request, ask(body, service, timeout))
    content = body.model_dump_json()
    if trial.answers(content):
        return await _unless_gone(request, ask(body, trial.challenger, timeout))
    answer = await _unless_gone(request, ask(body, service, timeout))
    operation = request.url.path.rpartition("/")[2]
    trial.offer(operation, content, partial(ask, body.sample()))
    return answer


async def _unless_gone(request: Request, work: Awaitable[Answer]) -> Answer:
    """The answer, unless the client leaves before it is there; then the work is given up."""
    asking = asyncio.current_task()
    assert asking is not None
    leaving = asyncio.create_task(_gone(request.receive))
    leaving.add_done_callback(give_up := lambda _: asking.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if not leaving.done() or leaving.cancelled():
            raise
        asking.uncancel()
        raise ClientGoneError from None
    finally:
        leaving.remove_done_callback(give_up)
        leaving.cancel()


async def _gone(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(answer: Answer, **content: Any) -> Response:
    """The answer with the version that gave it, also in a header for whoever reads no body."""
    name, version, _ = answer.release
    content = {"model": name, "version": version, **content}
    # Vectors go straight from their memory, in the digits that a float32 has: half the bytes of its float64.
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json", headers={"x-model-version": version})


def _encoded(vector: np.ndarray, body: schemas.EmbeddingsRequest) -> np.ndarray | str:
    if body.dimensions is not None:
        vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return np.ascontiguousarray(vector)


def _classification(scores: dict[str, float]) -> dict[str, Any]:
    best = max(scores, key=scores.__getitem__)
    return {"label": best, "score": scores[best], "scores": scores}
