"""A client of what `headway serve` serves.

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

from headway.serving.http.schemas import MOST_TEXTS


class RequestError(Exception):
    """The server's answer was no result.

    Attributes:
        status: of HTTP; 0 where no answer came.
        kind: the server's word for it, such as `not_able` or `text_too_long`.
        param: the field that is wrong, if it is one.
    """

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class InvalidRequestError(RequestError):
    """The same request will not do better: a wrong field, an unknown model, a text too long."""


class UnauthorizedError(RequestError):
    """The key is missing or unknown."""


class UnavailableError(RequestError):
    """The server is full or away, and stayed so for as long as the client waits.

    Attributes:
        retry_after: seconds until there may be room.
    """

    retry_after = 0.5


class DeadlineError(RequestError):
    """The answer did not come in time."""


class Classified(NamedTuple):
    """The winning class of a text, its probability, and those of all classes."""

    label: str
    score: float
    scores: dict[str, float]


class Span(NamedTuple):
    """`text` stands from `start` to `end`: an answer to a question, or an entity with its label."""

    text: str
    start: int
    end: int
    score: float
    label: str | None = None


class Client:
    """Asks a server; a context manager, usable from several threads at once.

    More texts than a request may hold are sent in several. Every method may raise the errors above.

    Args:
        url: the server's address.
        key: bearer key, where the server wants one.
        model: which of its models; may be left out where there is one.
        timeout: seconds that an answer may take.
        patience: seconds during which a request is sent again that finds the server full (503, 429) or
            away; its own `Retry-After` says when.
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
        """A vector of unit length for each text: float32, shape (texts, dimensions or embedding_size)."""
        settings = {"overlong": overlong, "dimensions": dimensions, "encoding_format": "base64"}
        encoded = [base64.b64decode(row["embedding"]) for row in self._each("embeddings", texts, settings)]
        return np.frombuffer(b"".join(encoded), "<f4").reshape(len(texts), -1)

    def classify(self, texts: Sequence[str], *, overlong: str = "truncate") -> list[Classified]:
        """The most probable class of each text."""
        rows = self._each("classify", texts, {"overlong": overlong})
        return [Classified(row["label"], row["score"], row["scores"]) for row in rows]

    def fill_mask(self, texts: Sequence[str], *, candidates: int = 5) -> list[list[list[tuple[str, float]]]]:
        """For each text, and each hidden word in it, (token, probability) of the likeliest words."""
        rows = self._each("fill-mask", texts, {"candidates": candidates})
        return [[[(w["token"], w["score"]) for w in mask] for mask in row["masks"]] for row in rows]

    def tokens(self, texts: Sequence[str], *, overlong: str = "truncate") -> list[list[Span]]:
        """The entities in each text."""
        rows = self._each("tokens", texts, {"overlong": overlong})
        return [[Span(**entity) for entity in row["entities"]] for row in rows]

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> list[tuple[int, float]]:
        """(place, score) of up to 256 documents, the one that fits the query best first."""
        body = {"query": query, "documents": list(documents), "top_n": top_n}
        found = self._post("rerank", body)["results"]
        return [(row["index"], row["relevance_score"]) for row in found]

    def answer(self, question: str, context: str, *, candidates: int = 1) -> list[Span]:
        """The likeliest answers to a question that stand in a text, best first."""
        body = {"question": question, "context": context, "candidates": candidates}
        return [Span(**span) for span in self._post("answer", body)["answers"]]

    def models(self) -> list[dict[str, Any]]:
        """What is served, as `/v1/models` says it."""
        return self._send("GET", "models", None)["data"]

    def _each(self, operation: str, texts: Sequence[str], settings: dict[str, Any]) -> Iterator[Any]:
        if isinstance(texts, str):
            raise TypeError("texts: a list of texts is expected, not a single one")
        for start in range(0, len(texts), MOST_TEXTS):
            chosen = list(texts[start : start + MOST_TEXTS])
            yield from self._post(operation, {"input": chosen, **settings})["data"]

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
            raise DeadlineError(0, "deadline_passed", f"no answer in time: {error}") from error
        except httpx.TransportError as error:  # the server may be restarting; inference may be asked twice
            raise UnavailableError(0, "unreachable", f"{self._http.base_url}: {error}") from error
        if not response.is_success:
            raise _error_of(response)
        return response.json()


_KINDS = {401: UnauthorizedError, 429: UnavailableError, 503: UnavailableError, 504: DeadlineError}


def _error_of(response: httpx.Response) -> RequestError:
    status = response.status_code
    try:
        told = response.json()["error"]
        details = (told["type"], told["message"], told.get("param"))
    except (ValueError, KeyError, TypeError):  # something else answers at this address
        details = ("unknown", f"HTTP status {status}", None)
    error = _KINDS.get(status, InvalidRequestError if status < 500 else RequestError)(status, *details)
    wanted = response.headers.get("retry-after", "")
    if isinstance(error, UnavailableError) and wanted.isdigit():
        error.retry_after = float(wanted)
    return error
