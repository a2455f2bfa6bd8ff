"""One OpenAPI document of all that clients see at the edge: what keys, tickets and stats say of themselves, and around
each operation what the edge adds to it: the key, the limits' headers, and the refusals.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from typing import Any

from fastapi import APIRouter

from services.edge.domain import Outcome
from services.edge.domain import problem as refusal
from services.edge.serving import answers
from services.keys import api as keys
from services.stats import api as stats
from services.tickets import api as tickets
from shared import errors, http
from shared.errors import Problem
from shared.http import create_app

Object = dict[str, Any]

_SERVICES: dict[str, APIRouter] = {"keys": keys.router, "tickets": tickets.router, "stats": stats.router}
_REQUEST_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_ABOUT = """\
Every request needs an API key in the header `X-API-Key`.

**Errors** are problem details (RFC 9457) with a stable `code` and the `request_id` that every answer also has as
`X-Request-ID`.

**Limits** are counted per key in sliding windows of a minute, an hour and a day. A refused request consumes nothing;
who waits until `X-RateLimit-Reset`, or for `Retry-After` seconds, is admitted. Besides, so many requests of a key may be
under way at once (128, unless the server has it otherwise): the code is then `too_many_open`.

**Retry** 429, and 503 with the code `not_ready`, after `Retry-After`: nothing was done. After 500, 502, 504, 503 with
another code or a broken connection, what was asked for may have been done: repeat GET, PUT and DELETE with exponential
back-off and jitter, and look before you repeat POST.

**Not yet**: `Idempotency-Key` is not looked at, so a repeated POST does twice what it does; a request with `If-Match` is
refused with 400, since nothing would compare it.

HEAD is answered as GET, without the content.

A change of a key returns when the edges apply it: `Keyledger-Propagation` says how many have.\
"""
_TAGS = {
    "API keys": "Issue keys, change them, delete them, and see what was done with them.",
    "Tickets": "Ask for help.",
    "Dashboard": "The figures of all of an owner's keys.",
}
_TIME_LEFT = {"type": "integer", "minimum": 1}
_HEADERS: Object = {
    "X-Request-ID": {
        "description": "The request's id, made by the edge; a client's own is kept as the correlation id.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "example": _REQUEST_ID,
    },
    "X-RateLimit-Limit": {
        "description": "Maximum requests per time window, of the window with the fewest left. Absent for keys without"
        " limits, and where no key was judged.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 100,
    },
    "X-RateLimit-Remaining": {
        "description": "Remaining requests in that window.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 99,
    },
    "X-RateLimit-Reset": {
        "description": "When that window next admits more (Unix seconds, UTC).",
        "schema": {"type": "integer"},
        "example": 1711035060,
    },
    "RateLimit-Policy": {
        "description": "All windows (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
        "example": '"minute";q=100;w=60, "hour";q=1000;w=3600, "day";q=10000;w=86400',
    },
    "RateLimit": {
        "description": "What is left of the window with the fewest left, and for how many seconds it stays so.",
        "schema": {"type": "string"},
        "example": '"minute";r=99;t=60',
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": _TIME_LEFT, "example": 2},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": {"type": "string"}, "example": "ApiKey"},
}
_LIMITS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit-Policy", "RateLimit")
_ALWAYS = (400, 401, 403, 429, 500, 502, 503, 504)
_OF_BODIES = (408, 413, 415, 422)
# Generators of clients take 32 bits without them.
_FORMATS = {"integer": "int64", "number": "double"}
# Not `ApiKey`, which is a schema: in some languages both become a type.
_SCHEME = "ApiKeyAuth"
_PROBLEM: Object = {
    "title": "Problem",
    "description": "A problem detail (RFC 9457). `code` is stable; programs go by it.",
    "type": "object",
    "required": ["type", "title", "status", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "description": "With the code `invalid`: what is wrong with which field.",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def document() -> Object:
    """The document. `AssertionError` when two services give one name to different schemas or operations."""
    paths: Object = {}
    schemas: Object = {"Problem": _PROBLEM}
    for name, router in _SERVICES.items():
        app = create_app(name, None)
        app.include_router(router)
        part = app.openapi()
        paths |= part["paths"]
        for schema, content in part["components"]["schemas"].items():
            assert schemas.setdefault(schema, content) == content, f"two schemas are named {schema}"
    for path, methods in paths.items():
        for method, operation in methods.items():
            _complete(path, method, operation)
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids)), "two operations have one id"
    for schema in schemas.values():
        if "examples" in schema:
            schema["examples"] = [_ordered(each, schema, schemas) for each in schema["examples"]]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused)
    made: Object = {
        "openapi": "3.1.0",
        "info": {
            "title": "Keyledger",
            "version": version("keyledger"),
            "summary": "API keys, what was done with them, and support tickets.",
            "description": _ABOUT,
            "contact": {"name": "Whoever runs this server"},
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The edge that served this document."}],
        "security": [{_SCHEME: []}],
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {_SCHEME: {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            "headers": _HEADERS,
            "responses": {_named(status): _response(status, codes) for status, codes in sorted(_codes().items())},
            "schemas": dict(sorted(schemas.items())),
        },
    }
    _add_formats(made)
    return made


def _add_formats(part: Any) -> None:
    match part:
        case {"type": "integer" | "number" as kind}:
            part["format"] = _FORMATS[kind]
    match part:
        case dict():
            for each in part.values():
                _add_formats(each)
        case list():
            for each in part:
                _add_formats(each)


def _ordered(value: Any, schema: Object, schemas: Object) -> Any:
    """An example in the order of its schema, which pydantic sorts by name, and with its nulls, which FastAPI drops."""
    schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    match value:
        case dict():
            named = [name for name in schema["properties"] if name in value or name in schema.get("required", ())]
            return {name: _ordered(value.get(name), schema["properties"][name], schemas) for name in named}
        case list():
            return [_ordered(each, schema["items"], schemas) for each in value]
    return value


def _complete(path: str, method: str, operation: Object) -> None:
    """Adds what holds for every operation: headers of success, and the problems that it may answer."""
    responses = operation["responses"]
    refused = {int(status) for status in responses if status >= "400"} - {422}
    for response in responses.values():
        response["headers"] = _refs("headers", ("X-Request-ID", *_LIMITS)) | response.get("headers", {})
    with_query = any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
    statuses = {
        *refused,
        *_ALWAYS,
        *(_OF_BODIES if "requestBody" in operation else ()),
        *((404,) if "{" in path else ()),
        *((409,) if method != "get" else ()),
        *((422,) if with_query else ()),
    }
    responses.pop("422", None)
    responses |= {str(status): {"$ref": f"#/components/responses/{_named(status)}"} for status in sorted(statuses)}


def _codes() -> dict[int, dict[str, str]]:
    """By status all stable codes with their titles: those of the edge, and those of the services."""
    found: dict[int, dict[str, str]] = {}
    own = (answers.REQUEST_TIMEOUT, answers.BAD_GATEWAY, answers.GATEWAY_TIMEOUT, answers.INTERNAL, answers.UNAVAILABLE)
    for status, code, title in chain(
        (refusal(outcome) for outcome in Outcome if outcome is not Outcome.allowed),
        ((answer.status, answer.code, answer.title) for answer in own),
        ((kind.status, kind.code, kind.title) for kind in _kinds()),
        [(503, "repair_needed", "Temporarily unavailable")],
    ):
        found.setdefault(status, {})[code] = title
    return found


def _kinds() -> Iterable[type[Problem]]:
    for module in (errors, http):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Problem) and kind.__module__ == module.__name__:
                yield kind


def _response(status: int, codes: dict[str, str]) -> Object:
    limits = () if status == 401 else _LIMITS
    more = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}.get(status, ())
    return {
        "description": "; ".join(f"`{code}`: {title}" for code, title in codes.items()),
        "headers": _refs("headers", ("X-Request-ID", *limits, *more)),
        "content": {
            "application/problem+json": {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {code: {"value": _problem(status, code, title)} for code, title in codes.items()},
            }
        },
    }


def _problem(status: int, code: str, title: str) -> Object:
    members = {"type": "about:blank", "title": title, "status": status, "code": code, "request_id": _REQUEST_ID}
    return members | ({"errors": [{"field": "name", "message": "Field required"}]} if status == 422 else {})


def _refs(kind: str, names: Iterable[str]) -> Object:
    return {name: {"$ref": f"#/components/{kind}/{name}"} for name in names}


def _named(status: int) -> str:
    return f"Problem{status}"
