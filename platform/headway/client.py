"""A Python client for `headway serve`.

```python
import headway

with headway.Client("http://127.0.0.1:8000") as client:
    client.embeddings(["The baker slices bread.", "Bread is sliced."])  # array, (2, embedding_size)
```
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np

from headway.serving.http.schemas import MAX_TEXTS


class RequestError(Exception):
    """A request that brought no result.

    Attributes:
        status: of HTTP; 0 if no answer came.
        kind: the server's name for the error, such as `not_able` or `text_too_long`.
        param: the field that is wrong, if it is one.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


_TOO_LARGE = 413


class InvalidRequestError(RequestError):
    """The request is wrong, and would fail again: a wrong field, an unknown model, a text too long."""


class UnauthorizedError(RequestError):
    """The key is missing or unknown."""


class UnavailableError(RequestError):
    """The server is full or cannot be reached, and stayed so for as long as the client waits.

    Attributes:
        retry_after: seconds after which to try again.
    """

    retry_after = 0.5


class DeadlineError(RequestError):
    """The answer did not arrive in time."""


class Classified(NamedTuple):
    """The most probable class of a text, its probability, and those of all classes."""

    label: str
    score: float
    scores: dict[str, float]


class Span(NamedTuple):
    """A part of a text, from character `start` to `end`: an answer, or an entity with its label."""

    text: str
    start: int
    end: int
    score: float
    label: str | None = None


class Client:
    """A connection to a server. It is a context manager, and several threads may use it at once.

    More texts than fit into a request are sent in several. Every method may raise a `RequestError`.

    Args:
        url: the server's address.
        key: bearer key, if the server needs one.
        model: which of the server's models; needed only if there are several.
        timeout: seconds that an answer may take.
        patience: seconds during which a request is repeated while the server is full (503, 429) or cannot be
            reached, each time after the `Retry-After` that the server gave.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        model: str | None = None,
        *,
        timeout: float = 60.0,
        patience: float = 30.0,
    ) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else None
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self._model, self._patience = model, patience

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def embeddings(
        self, texts: Sequence[str], *, overlong: str = "truncate", dimensions: int | None = None
    ) -> np.ndarray:
        """A vector of unit length for each text, float32, shape (texts, dimensions or embedding_size)."""
        if len(texts) == 0:
            return np.empty((0, dimensions or self._embedding_size()), np.float32)
        settings = {"overlong": overlong, "dimensions": dimensions, "encoding_format": "base64"}
        encoded = [base64.b64decode(row["embedding"]) for row in self._each("embeddings", texts, settings)]
        return np.frombuffer(b"".join(encoded), "<f4").reshape(len(texts), -1)

    def classify(self, texts: Sequence[str], *, overlong: str = "truncate") -> list[Classified]:
        """The most probable class of each text."""
        rows = self._each("classify", texts, {"overlong": overlong})
        return [Classified(row["label"], row["score"], row["scores"]) for row in rows]

    def fill_mask(self, texts: Sequence[str], *, candidates: int = 5) -> list[list[list[tuple[str, float]]]]:
        """For each text and each masked word in it, (token, probability) of the likeliest words."""
        rows = self._each("fill-mask", texts, {"candidates": candidates})
        return [[[(w["token"], w["score"]) for w in mask] for mask in row["masks"]] for row in rows]

    def tokens(self, texts: Sequence[str], *, overlong: str = "truncate") -> list[list[Span]]:
        """The entities in each text."""
        rows = self._each("tokens", texts, {"overlong": overlong})
        return [[Span(**entity) for entity in row["entities"]] for row in rows]

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> list[tuple[int, float]]:
        """(index, score) of up to 256 documents, best first."""
        body = {"query": query, "documents": list(documents), "top_n": top_n}
        ranked = self._post("rerank", body)["results"]
        return [(row["index"], row["relevance_score"]) for row in ranked]

    def answer(self, question: str, context: str, *, candidates: int = 1) -> list[Span]:
        """The likeliest answers to a question in a context, best first."""
        body = {"question": question, "context": context, "candidates": candidates}
        return [Span(**span) for span in self._post("answer", body)["answers"]]

    def models(self) -> list[dict[str, Any]]:
        """The served models, as `/v1/models` describes them."""
        return self._send("GET", "models", None)["data"]

    def _embedding_size(self) -> int:
        models = self.models()
        fitting = [model["embedding_size"] for model in models if self._model in (None, model["id"])]
        if not fitting or (self._model is None and len(models) > 1):
            served = ", ".join(model["id"] for model in models)
            message = f"model: {self._model!r} is not served; served: {served}"
            raise InvalidRequestError(404, "not_found", message)
        return int(fitting[0])

    def _each(self, operation: str, texts: Sequence[str], settings: dict[str, Any]) -> Iterator[Any]:
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, not a single one")
        for start in range(0, len(texts), MAX_TEXTS):
            yield from self._part(operation, list(texts[start : start + MAX_TEXTS]), settings)

    def _part(self, operation: str, texts: list[str], settings: dict[str, Any]) -> list[Any]:
        """The rows of some texts, asked for in two halves if they are too much for one request."""
        try:
            rows: list[Any] = self._post(operation, {"input": texts, **settings})["data"]
            return rows
        except InvalidRequestError as error:
            if error.status != _TOO_LARGE or len(texts) == 1:
                raise
        half = len(texts) // 2
        halves = (texts[:half], texts[half:])
        return [row for part in halves for row in self._part(operation, part, settings)]

    def _post(self, operation: str, body: dict[str, Any]) -> Any:
        return self._send("POST", operation, {"model": self._model, **body})

    def _send(self, method: str, operation: str, body: dict[str, Any] | None) -> Any:
        until = time.monotonic() + self._patience
        while True:
            try:
                return self._attempt(method, operation, body)
            except UnavailableError as error:
                if time.monotonic() + error.retry_after > until:
                    raise
                time.sleep(error.retry_after)

    def _attempt(self, method: str, operation: str, body: Any) -> Any:
        try:
            response = self._http.request(method, f"/v1/{operation}", json=body)
        except httpx.TimeoutException as error:
            raise DeadlineError(
                0, "deadline_passed", f"the answer did not arrive in time: {error}"
            ) from error
        except httpx.TransportError as error:  # the server may be restarting; asking twice does no harm
            message = f"{self._http.base_url} cannot be reached: {error}"
            raise UnavailableError(0, "unreachable", message) from error
        if not response.is_success:
            raise _error_of(response)
        return response.json()


_ERRORS = {401: UnauthorizedError, 429: UnavailableError, 503: UnavailableError, 504: DeadlineError}


def _error_of(response: httpx.Response) -> RequestError:
    status = response.status_code
    try:
        content = response.json()["error"]
        details = (content["type"], content["message"], content.get("param"))
    except (ValueError, KeyError, TypeError):  # another program answers at this address
        details = ("unknown", f"HTTP status {status}", None)
    error = _ERRORS.get(status, InvalidRequestError if status < 500 else RequestError)(status, *details)
    retry_after = response.headers.get("retry-after", "")
    if isinstance(error, UnavailableError) and retry_after.isdigit():
        error.retry_after = float(retry_after)
    return error
