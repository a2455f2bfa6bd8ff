"""How a process of a service runs: until a signal, everything side by side, and down in order."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import structlog
import uvloop

from shared.settings import EX_CONFIG, Base, PartitionsChanged, load
from shared.telemetry import Check, Checks, configure_logging

_PR_SET_PDEATHSIG = 1
_PAUSE = (1.0, 30.0)
_log = structlog.get_logger()

S = TypeVar("S", bound=Base)
Part = Callable[[asyncio.Event], Awaitable[None]]


def run_role(service: str, settings: type[S], roles: Mapping[str, Callable[[S], Coroutine[Any, Any, None]]]) -> None:
    """Runs the role that the command line names, with the settings of its service."""
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role not in roles:
        raise SystemExit(f"usage: python -m services.{service} {'|'.join(roles)}")
    loaded = load(settings)
    configure_logging(loaded.log_level, service=service, role=role)
    try:
        run(roles[role](loaded))
    except PartitionsChanged as error:
        sys.stderr.write(f"KEYLEDGER_PARTITIONS: {error}\n")
        raise SystemExit(EX_CONFIG) from None


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
            except PartitionsChanged:
                raise
            except Exception as error:
                _log.exception("a part failed and is started again")
                self._problem = f"failed: {type(error).__name__}: {error}"
            pause = _PAUSE[0] if clock() - began > _PAUSE[1] else pause
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(2 * pause, _PAUSE[1])
