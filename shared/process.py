"""How a process of a service runs: its role by name, its parts side by side until a signal, and down in order."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import structlog
import uvloop

from shared.settings import EX_CONFIG, Base, WrongSettings, load
from shared.telemetry import Check, Checks, configure_logging, internal_server

EX_USAGE = 64  # sysexits.h
_PR_SET_PDEATHSIG = 1
_PAUSE = (1.0, 30.0)
ENDING_SECONDS = 15.0
"""Longer than the requests or the batch in a service's hands take."""
_log = structlog.get_logger()

S = TypeVar("S", bound=Base)
Part = Callable[[asyncio.Event], Awaitable[None]]


def run_role(
    service: str, settings: type[S], roles: Mapping[str, Callable[[S], Coroutine[Any, Any, None]]], default: str = ""
) -> None:
    """Runs the role that the command line names, or else `default`, with the settings of its service."""
    role, *more = sys.argv[1:] or [default]
    if more or role not in roles:
        sys.stderr.write(f"usage: python -m services.{service} {'|'.join(roles)}\n")
        raise SystemExit(EX_USAGE)
    loaded = load(settings)
    configure_logging(loaded.log_level, service=service, role=role)
    try:
        run(roles[role](loaded))
    except WrongSettings as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs a process's main coroutine on uvloop."""
    uvloop.run(main)


def die_with_parent(expected: int | None = None) -> None:
    """Asks Linux to end this process when its parent ends, whatever ends it (prctl(2), PR_SET_PDEATHSIG); ends it now when
    the parent is not the `expected` one any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if expected is not None and os.getppid() != expected:
        raise SystemExit(0)


async def until_signalled(
    internal: tuple[str, int],
    checks: Checks,
    *parts: Part,
    leave: float = 0,
    patience: float = ENDING_SECONDS,
    extra: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Runs `parts` side by side until SIGTERM or SIGINT, and tells of them at the address `internal` (host, port).

    From the signal on the process is not ready; `leave` seconds later, when those who ask that have sent their requests
    elsewhere, the event is set that each part was given. They have `patience` seconds to end. A part that ends early or
    fails ends the process: whoever supervises it starts it anew.
    """
    stop, signalled = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    known = dict(checks)
    async with internal_server(*internal, known, extra):
        tasks = [asyncio.ensure_future(part(stop)) for part in parts]
        waiting = asyncio.ensure_future(signalled.wait())
        await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        known["ending"] = lambda: Check(False, f"told to end, within {leave + patience:g} s")
        _log.info("ending", signalled=signalled.is_set())
        if signalled.is_set() and leave:
            await asyncio.wait(tasks, timeout=leave, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        waiting.cancel()
        async with asyncio.timeout(patience):
            results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


class Apart:
    """A part whose errors are its own: it starts again after a pause that grows, and readiness says so meanwhile."""

    def __init__(self, part: Part, checks: Checks) -> None:
        self._part = part
        self._checks = checks
        self._problem = ""

    def checks(self) -> dict[str, Callable[[], Check]]:
        """Those of the part; none is ready while the part is down."""
        return {
            name: lambda check=check: Check(False, self._problem) if self._problem else check()
            for name, check in self._checks.items()
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. What contradicts the settings ends the process all the same: no restart will mend it."""
        clock, pause = asyncio.get_running_loop().time, _PAUSE[0]
        while not stop.is_set():
            self._problem, began = "", clock()
            try:
                await self._part(stop)
            except WrongSettings:
                raise
            except Exception as error:
                _log.exception("a part failed and is started again")
                self._problem = f"failed: {type(error).__name__}: {error}"
            pause = _PAUSE[0] if clock() - began > _PAUSE[1] else pause
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(2 * pause, _PAUSE[1])
