"""What a process tells of itself: JSON logs on standard output, and /livez, /readyz, /metrics on its internal port."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

_DEADLINE = 5.0
_MAX_HEAD = 8192


@dataclass(frozen=True)
class Check:
    """One condition of readiness and, in words, how it stands."""

    ready: bool
    detail: str = ""


Checks = Mapping[str, Callable[[], Check]]


def configure_logging(level: str, **always: str) -> None:
    """One JSON object a line on standard output, from structlog and from libraries alike; `always` is on each line."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                lambda _logger, _name, event: {**always, **event},
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It repeats an error up to thousands of times a second while a broker or a topic is away; whoever calls it tells.
    logging.getLogger("aiokafka").setLevel("CRITICAL")
    logging.getLogger("httpx2").setLevel("WARNING")
    logging.getLogger("httpcore2").setLevel("WARNING")


@asynccontextmanager
async def internal_server(
    host: str, port: int, checks: Checks, extra: Callable[[], dict[str, Any]] | None = None
) -> AsyncIterator[int]:
    """Serves health and metrics as long as the context lasts; yields the port.

    /livez answers 200 as long as the event loop turns; /readyz 200 when every check is ready, else 503, with each
    check's detail (and `extra` beside them); /metrics is the Prometheus text format.
    """

    asked: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_DEADLINE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, checks, extra))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        asked[task] = writer
        task.add_done_callback(asked.pop)

    server = await asyncio.start_server(connected, host, port, limit=_MAX_HEAD)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        # Cancelled, as the loop does with what is left, each would be told of with a traceback.
        for writer in asked.values():
            writer.transport.abort()
        if asked:
            await asyncio.wait(asked, timeout=_DEADLINE)


def readiness(checks: Checks, extra: Callable[[], dict[str, Any]] | None = None) -> tuple[bool, dict[str, Any]]:
    """Whether all checks are ready, and the body of /readyz."""
    found = {name: check() for name, check in checks.items()}
    ready = all(check.ready for check in found.values())
    listed = {name: {"ready": check.ready, "detail": check.detail} for name, check in found.items()}
    return ready, {"ready": ready, "checks": listed} | (extra() if extra else {})


def _answer(head: bytes, checks: Checks, extra: Callable[[], dict[str, Any]] | None) -> bytes:
    match head.split(b" ", 2)[:2]:
        case [b"GET", b"/livez"]:
            return _response(200, "text/plain", b"ok\n")
        case [b"GET", b"/readyz"]:
            ready, body = readiness(checks, extra)
            return _response(200 if ready else 503, "application/json", json.dumps(body).encode() + b"\n")
        case [b"GET", b"/metrics"]:
            return _response(200, CONTENT_TYPE_LATEST, generate_latest())
    return _response(404, "text/plain", b"not found\n")


def _response(status: int, content_type: str, body: bytes) -> bytes:
    reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
