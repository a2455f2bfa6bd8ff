"""HTTP of every service behind the edge: problems (RFC 9457), one log line a request, and the server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from email.utils import formatdate
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import Histogram
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import BadRequest, Invalid, Problem
from shared.identity import load_public_keys
from shared.process import Part, until_signalled
from shared.settings import ServiceSettings
from shared.telemetry import Check

_MAX_BODY = 1024 * 1024
_log = structlog.get_logger()
_seconds = Histogram("keyledger_http_seconds", "Time to answer", ["method", "status"])


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
    allowed = {method.upper() for methods in matching for method in methods}
    return ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))


class _Requests:
    """Around everything: request id, bodies' cap and type, the last resort for unexpected errors, one log line, timing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A HEAD is a GET whose content the server leaves away, by the method that it read itself (RFC 9110, section 9.3.2).
        method = scope["method"]
        scope = {**scope, "method": "GET"} if method == "HEAD" else scope
        request = Request(scope)
        ids = _ids(request)
        scope["keyledger.request_id"] = ids.get("request_id")
        status, started = 0, time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with structlog.contextvars.bound_contextvars(**ids):
            try:
                if "if-match" in request.headers:
                    raise PreconditionUnsupported
                await self._app(scope, _body(request, receive), sent)
            except Problem as problem:
                if not status:
                    await problem_response(request, problem)(scope, receive, sent)
            except Exception:
                _log.exception("unexpected error", method=method, path=scope["path"])
                if not status:
                    await problem_response(request, Problem())(scope, receive, sent)
            took = time.perf_counter() - started
            _seconds.labels(method, status).observe(took)
            _log.info("request", method=method, path=scope["path"], status=status, seconds=round(took, 6))


_ID = re.compile(r"[\x21-\x7e]{1,128}")
# W3C Trace Context, section 3.2: of this version, and neither id all zero.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_IDS = {
    "request_id": ("x-request-id", _ID),
    "correlation_id": ("x-correlation-id", _ID),
    "traceparent": ("traceparent", _TRACEPARENT),
}


def _ids(request: Request) -> dict[str, str]:
    """By which ids the request is known: in log lines, and in the events that it leads to (`shared.eventstore.Meta`)."""
    found = {name: request.headers.get(header, "") for name, (header, _) in _IDS.items()}
    return {name: value for name, value in found.items() if _IDS[name][1].fullmatch(value)}


class PreconditionUnsupported(Problem):
    """Nothing would compare it: a change that should not be made would be."""

    status, code, title = 400, "precondition_unsupported", "If-Match is not supported yet"


class TooLarge(Problem):
    """The body is larger than any that this API takes."""

    status, code, title = 413, "too_large", "Request body too large"


class UnsupportedMediaType(Problem):
    """The body is not declared to be JSON."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


def _body(request: Request, receive: Receive) -> Receive:
    """The body of a request that has one, judged when it is read: where none is wanted, none is refused."""
    taken = 0

    async def read() -> Message:
        nonlocal taken
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > _MAX_BODY:
            raise TooLarge
        media = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if (length != "0" or "transfer-encoding" in request.headers) and media != "application/json":
            raise UnsupportedMediaType("Send application/json.")
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > _MAX_BODY:
            raise TooLarge
        return message

    return read


async def serve(
    name: str,
    settings: ServiceSettings,
    router: APIRouter,
    context: object,
    *parts: Part,
    checks: Mapping[str, Callable[[], Check]] | None = None,
) -> None:
    """The role `api` of a service: serves its routes, and runs `parts` beside them, until the process is told to stop.

    Routes find `context` by `shared.api.context`; readiness is told by `checks`.
    """
    app = create_app(name, settings.identity_public_keys)
    app.include_router(router)
    app.state.context = context
    serving = http_server(app, settings.host, settings.port)
    await until_signalled(settings.internal, checks or {}, serving, *parts, leave=settings.leave_seconds)


def http_server(app: ASGIApp, host: str, port: int) -> Part:
    """Serves an ASGI application until the process is told to stop; requests under way are answered first."""

    async def part(stop: asyncio.Event) -> None:
        config = uvicorn.Config(
            _dated(app),
            host=host,
            port=port,
            http="httptools",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
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


def _dated(app: ASGIApp) -> ASGIApp:
    """Dates each answer when it begins. uvicorn makes a date once a second, so that it lies before what the answer tells."""

    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(usegmt=True).encode())
                message = {**message, "headers": [date, *message.get("headers", ())]}
            await send(message)

        await app(scope, receive, sent)

    return dated


class _Server(uvicorn.Server):
    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Leaves the signals to `until_signalled`."""
        return nullcontext()
