"""The routes of all operations, and how a request is answered: by which version, and within what time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, HTTPException, Request, Response

from headway.serving.http import schemas
from headway.serving.http.asgi import arrived, caller_name
from headway.serving.http.errors import ClientGoneError
from headway.serving.http.operations import OPERATIONS, ServedOperation
from headway.serving.rollout.challenger import ShadowRequest
from headway.serving.rollout.rollout import Rollout
from headway.serving.scheduling.caller import Caller
from headway.serving.scheduling.messages import Answer

TIMEOUT_HEADER = "x-request-timeout-seconds"


def _route(operation: ServedOperation[Any]) -> Callable[..., Awaitable[Response]]:
    async def endpoint(body: Any, request: Request) -> Response:
        return await respond(operation, body, request)

    endpoint.__annotations__["body"] = operation.request  # FastAPI reads the body's type here
    return endpoint


router = APIRouter(prefix="/v1")
for _operation in OPERATIONS:
    router.add_api_route(
        f"/{_operation.name}",
        _route(_operation),
        methods=["POST"],
        name=_operation.name.replace("-", "_"),
        description=_operation.description,
        # For the OpenAPI description only: `respond` writes the JSON itself.
        responses={200: {"model": _operation.response}},
    )


async def respond(operation: ServedOperation[Any], body: schemas.Request, request: Request) -> Response:
    """Answer a request.

    Raises:
        HTTPException: no such model, or a timeout that is no number.
        ClientGoneError: the client left first.
        Exception: what the operation raises.
    """
    rollout, caller = _rollout(request, body), _caller(request)
    answer = await _unless_gone(request, _answer(operation, body, rollout, caller))
    name, version, _ = answer.release
    content = {"model": name, "version": version, **operation.content(body, answer)}
    # orjson writes arrays from their memory, with the digits of a float32: half as many as of its float64.
    encoded = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(encoded, media_type="application/json", headers={"x-model-version": version})


async def _answer(
    operation: ServedOperation[Any], body: schemas.Request, rollout: Rollout, caller: Caller
) -> Answer:
    """The serving version's answer, or the challenger's if the request is one of its own."""
    serving, challenger = rollout.serving, rollout.challenger
    if challenger is None:
        return await operation.ask(body, serving, caller)
    content = body.model_dump_json()
    if challenger.answers(content):
        return await operation.ask(body, challenger.service, caller)
    answer = await operation.ask(body, serving, caller)
    if operation.comparison is not None:
        ask = partial(operation.ask, body.sample())
        challenger.offer(content, ShadowRequest(operation.name, operation.comparison, ask))
    return answer


def _rollout(request: Request, body: schemas.Request) -> Rollout:
    rollouts: Mapping[str, Rollout] = request.app.state.rollouts
    if body.model is None and len(rollouts) == 1:
        return next(iter(rollouts.values()))
    if body.model is None or body.model not in rollouts:
        raise HTTPException(404, f"model: {body.model!r} is not served; served: {', '.join(rollouts)}")
    return rollouts[body.model]


def _caller(request: Request) -> Caller:
    """Who asks. The timeout begins with the request's arrival: its body may have taken a while."""
    longest: float = request.app.state.timeout
    asked = request.headers.get(TIMEOUT_HEADER)
    try:
        seconds = longest if asked is None else float(asked)
    except ValueError:
        seconds = -1.0
    if not seconds > 0.0:
        raise HTTPException(422, f"{TIMEOUT_HEADER}: {asked!r} is not a number of seconds above 0")
    seconds = min(seconds, longest)
    return Caller(caller_name(request.scope), arrived(request.scope) + seconds, seconds)


async def _unless_gone(request: Request, work: Awaitable[Answer]) -> Answer:
    """The answer, unless the client disconnects before; then the work is cancelled."""
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
