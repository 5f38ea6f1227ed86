"""The page at `/docs`: all operations and their fields, from the OpenAPI description, without a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_OPENING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headway: operations</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/page/style.css">
</head><body><header><h1>Operations</h1>
<p class="hint"><a href="/openapi.json">OpenAPI description</a> · <a href="/">try it</a></p></header><main>
"""


def reference_page(openapi: Mapping[str, Any]) -> str:
    """The page for an OpenAPI description, in HTML."""
    parts = [_OPENING]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation, openapi)
    return "".join([*parts, "</main></body></html>\n"])


def _operation(title: str, operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section><h2><code>{escape(title)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    if "requestBody" in operation:
        yield from _fields("Request", _json_schema(operation["requestBody"]), openapi)
    answer = _json_schema(operation["responses"].get("200", {}))
    if answer.get("$ref"):
        yield from _fields("Answer", answer, openapi)
    yield "</section>\n"


def _json_schema(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return content.get("content", {}).get("application/json", {}).get("schema", {})


def _fields(caption: str, schema: Mapping[str, Any], openapi: Mapping[str, Any]) -> Iterator[str]:
    """A table of an object's fields, and one for each object in it."""
    pending = [(caption, schema["$ref"])]
    seen: set[str] = set()
    while pending:
        title, reference = pending.pop(0)
        described = openapi["components"]["schemas"][reference.rpartition("/")[2]]
        required = described.get("required", ())
        yield f"<table><caption>{escape(title)}</caption><tr><th>field<th>type<th>default<th>meaning"
        for name, field in described.get("properties", {}).items():
            default = "required" if name in required else escape(str(field.get("default", "")))
            cells = (f"<code>{escape(name)}</code>", escape(_kind(field)), default)
            yield "<tr>" + "".join(f"<td>{cell}" for cell in (*cells, escape(field.get("description", ""))))
            inner = _references(field) - seen
            seen |= inner
            pending += [(f"{name}: each", reference) for reference in sorted(inner)]
        yield "</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    match schema:
        case {"$ref": reference}:
            return str(reference).rpartition("/")[2]
        case {"anyOf": parts}:
            return " or ".join(_kind(part) for part in parts if part.get("type") != "null")
        case {"enum": choices}:
            return ", ".join(map(str, choices))
        case {"const": value}:
            return str(value)
        case {"type": "array"}:
            return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _references(schema: Any) -> set[str]:
    if isinstance(schema, Mapping):
        direct = {schema["$ref"]} if "$ref" in schema else set()
        return direct.union(*(_references(part) for part in schema.values()))
    if isinstance(schema, list):
        return set().union(*(_references(part) for part in schema))
    return set()
