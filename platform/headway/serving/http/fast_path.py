"""The short way to an operation: a well-formed request skips FastAPI's layers, a third of the gateway's time.

Whatever is not plainly well-formed goes through FastAPI, which says what is wrong. Its routes stay, and with
them the OpenAPI page.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from headway.serving.http.errors import answer_to, is_expected
from headway.serving.http.guard import Message, Receive, Send, received_again
from headway.serving.http.operations import router

_JSON = b"application/json"


class ShortWay:
    """An ASGI application in front of the one that `build_app` makes; bodies come whole, as from `Guard`."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._operations: dict[str, tuple[APIRoute, type[BaseModel]]] = {
            route.path: (route, get_type_hints(route.endpoint)["body"])
            for route in router.routes
            if isinstance(route, APIRoute)
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = self._operations.get(scope.get("path", ""))
        if found is None or scope["method"] != "POST" or (b"content-type", _JSON) not in scope["headers"]:
            await self._app(scope, receive, send)
            return
        route, schema = found
        message = await receive()
        try:
            body = schema.model_validate_json(message.get("body", b""))
        except ValidationError:
            await self._app(scope, received_again(message, receive), send)
            return
        scope["app"], scope["route"] = self._app, route
        await self._answer(route.endpoint, body, scope, receive, send)

    async def _answer(
        self, operation: Any, body: BaseModel, scope: Message, receive: Receive, send: Send
    ) -> None:
        try:
            response = await operation(body, Request(scope, receive))
        except Exception as error:
            await answer_to(error)(scope, receive, send)
            if not is_expected(error):
                raise  # the server's log keeps where it was
        else:
            await response(scope, receive, send)
