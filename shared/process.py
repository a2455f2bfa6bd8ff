"""How a process of a service runs: until a signal, everything side by side, and down in order."""

from __future__ import annotations

import asyncio
import ctypes
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

_PR_SET_PDEATHSIG = 1
_log = structlog.get_logger()

Part = Callable[[asyncio.Event], Awaitable[None]]


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a process's main coroutine on uvloop."""
    uvloop.run(main)


def die_with_parent() -> None:
    """Asks Linux to end this process when its parent ends, whatever ends it (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def until_signalled(*parts: Part) -> None:
    """Runs `parts` side by side until SIGTERM or SIGINT, which sets the event that each was given.

    A part that ends early or fails ends the process: whoever supervises it starts it anew.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.ensure_future(part(stop)) for part in parts]
    stopped = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    _log.info("ending", signalled=stopped in done)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 15.0)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


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
