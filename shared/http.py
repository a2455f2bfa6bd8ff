"""HTTP of every service behind the edge: problems (RFC 9457), the caller's identity, paging, one log line a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import jwt
import structlog
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import Histogram
from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import BadRequest, Invalid, PermissionMissing, Problem, Unauthenticated
from shared.process import Part

AUDIENCE = "keyledger"
ISSUER = "keyledger"
_LEEWAY = 30
_MAX_BODY = 1024 * 1024
_BIGINT = 2**63 - 1
_log = structlog.get_logger()
_seconds = Histogram("keyledger_http_seconds", "Time to answer", ["method", "status"])


@dataclass(frozen=True)
class Identity:
    """Who calls, as the edge found it: verified from the identity token, never from any other header."""

    owner_id: int
    key_id: int
    permissions: frozenset[str]
    token: str

    @property
    def admin(self) -> bool:
        """Whether the caller may act for every owner."""
        return "admin" in self.permissions

    @property
    def actor(self) -> str:
        """Who is written into events as their cause."""
        return f"key-{self.key_id}"

    def owner(self, wanted: int | None) -> int:
        """The owner to act for: one's own, or for `admin` the one that is wanted."""
        if wanted is None or wanted == self.owner_id:
            return self.owner_id
        if not self.admin:
            raise PermissionMissing("Only a key with the permission admin may name another owner.")
        return wanted


def load_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """The Ed25519 public keys of a PEM file. `ValueError` when there is none or one of another kind."""
    end = b"-----END PUBLIC KEY-----"
    blocks = [block + end for block in path.read_bytes().split(end)[:-1]]
    keys = [load_pem_public_key(block.strip()) for block in blocks]
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ValueError(f"{path} must hold Ed25519 public keys")
    return [key for key in keys if isinstance(key, Ed25519PublicKey)]


def verify(token: str, keys: list[Ed25519PublicKey]) -> Identity:
    """The identity in a token that one of `keys` signed for these services (RFC 7519, RFC 8037); else `Unauthenticated`."""
    for key in keys:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=_LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud"]},
            )
            return Identity(int(claims["owner_id"]), int(claims["key_id"]), frozenset(claims["permissions"]), token)
        except jwt.InvalidSignatureError:
            continue
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise Unauthenticated("The identity token is not valid.") from error
    raise Unauthenticated("The identity token is not valid.")


async def _identity(
    request: Request, keyledger_identity: Annotated[str, Header(include_in_schema=False)] = ""
) -> Identity:
    return verify(keyledger_identity, request.app.state.identity_keys)


Caller = Annotated[Identity, Depends(_identity)]


@dataclass(frozen=True)
class Page:
    """A page of a list: `page` from 1, `size` rows."""

    page: int
    size: int

    @property
    def offset(self) -> int:
        """Rows before this page, within what the database can count."""
        return min((self.page - 1) * self.size, _BIGINT)


async def _page(page: Annotated[int, Query(ge=1)] = 1, size: Annotated[int, Query(ge=1, le=100)] = 10) -> Page:
    return Page(page, size)


Paged = Annotated[Page, Depends(_page)]


class Body(BaseModel):
    """Base of request bodies: a field that nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    return value


def _on_one_line(value: str) -> str:
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise ValueError("must not contain control characters")
    return _storable(value)


@dataclass(frozen=True)
class _Told(AfterValidator):
    """A rule of ours that the API description tells by a pattern."""

    pattern: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": self.pattern}


Text = Annotated[str, _Told(_storable, r"^[^\u0000]*$")]
# Stands after the constraints of a field: pydantic trims first only where nothing comes before.
ONE_LINE = _Told(
    _on_one_line, r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$"
)


# What the API description says of values that the code holds as text.
PathId = Annotated[str, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": _BIGINT})]
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
LOCATION: dict[str, Any] = {
    "Location": {"description": "Where what was made is.", "schema": {"type": "string", "format": "uri-reference"}}
}


def example(value: dict[str, Any]) -> ConfigDict:
    """A model's configuration with an example of it for the API description."""
    return ConfigDict(json_schema_extra={"examples": [value]})


def timestamp(moment: datetime) -> str:
    """The moment as the API shows it: RFC 3339, UTC, whole seconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def bigint(text: str) -> int | None:
    """A path's id: a positive integer in canonical form, or None."""
    if not (text.isascii() and text.isdigit()) or text[0] == "0":
        return None
    return int(text) if len(text) < 20 and int(text) <= _BIGINT else None


def create_app(name: str, identity_keys: Path | None) -> FastAPI:
    """A service's application: every error becomes a problem, every request one log line."""
    app = FastAPI(
        title=f"Keyledger {name}",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.identity_keys = load_public_keys(identity_keys) if identity_keys else []
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(_Requests)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The problem as application/problem+json, with its stable code and the request's id."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "code": problem.code,
        "request_id": request.scope.get("keyledger.request_id"),
    }
    if problem.detail and problem.status != 500:
        body["detail"] = problem.detail
    body |= problem.extra
    headers = problem.headers | {"Cache-Control": "no-store"}
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")


async def _on_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return problem_response(request, error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        return problem_response(request, BadRequest("The body is not valid JSON."))
    errors = [{"field": _field(item["loc"]), "message": str(item["msg"])} for item in found]
    return problem_response(request, Invalid(errors=errors))


def _field(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc[1:]) or str(loc[0])


_TITLES = {
    400: ("bad_request", "Bad request"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
}


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Problem):
        return problem_response(request, error.__cause__)
    code, title = _TITLES.get(error.status_code, ("error", str(error.detail)))
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else dict(error.headers or {})
    problem = Problem(headers=headers)
    problem.status, problem.code, problem.title = error.status_code, code, title
    return problem_response(request, problem)


def _allowed(request: Request) -> str:
    """Every method that the path has (RFC 9110, 10.2.1); the framework names those of one route."""
    paths = request.app.openapi()["paths"].items()
    matching = [methods for path, methods in paths if compile_path(path)[0].match(request.scope["path"])]
    return ", ".join(sorted(method.upper() for methods in matching for method in methods))


class _Requests:
    """Around everything: request id, body cap, media type, the last resort for unexpected errors, one log line, timing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        scope["keyledger.request_id"] = request_id = request.headers.get("x-request-id")
        status, started = 0, time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if refusal := _refusal(request):
                    await problem_response(request, refusal)(scope, receive, sent)
                else:
                    await self._app(scope, _capped(receive), sent)
            except Problem as problem:
                if not status:
                    await problem_response(request, problem)(scope, receive, sent)
            except Exception:
                _log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if not status:
                    await problem_response(request, Problem())(scope, receive, sent)
            took = time.perf_counter() - started
            _seconds.labels(scope["method"], status).observe(took)
            _log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=round(took, 6))


class TooLarge(Problem):
    """The body is larger than any that this API takes."""

    status, code, title = 413, "too_large", "Request body too large"


class UnsupportedMediaType(Problem):
    """The body is not declared to be JSON."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


def _refusal(request: Request) -> Problem | None:
    length = request.headers.get("content-length", "0")
    has_body = length != "0" or "transfer-encoding" in request.headers
    if length.isdigit() and int(length) > _MAX_BODY:
        return TooLarge()
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if has_body and request.method in ("POST", "PUT", "PATCH") and media != "application/json":
        return UnsupportedMediaType("Send application/json.")
    return None


def _capped(receive: Receive) -> Callable[[], Awaitable[Message]]:
    taken = 0

    async def capped() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > _MAX_BODY:
            raise TooLarge
        return message

    return capped


def http_server(app: ASGIApp, host: str, port: int) -> Part:
    """Serves an ASGI application until the process is told to stop; requests under way are answered first."""

    async def part(stop: asyncio.Event) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http="httptools",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=65536,
        )
        server = _Server(config)
        serving = asyncio.ensure_future(server.serve())
        await asyncio.wait([serving, asyncio.ensure_future(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving

    return part


class _Server(uvicorn.Server):
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leaves the signals to `until_signalled`."""
        return nullcontext()
