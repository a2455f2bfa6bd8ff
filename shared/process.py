"""How a process of a service runs: its role by name, its parts side by side until a signal, and down in order."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import structlog
import uvloop
from prometheus_client import REGISTRY
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from shared.settings import EX_CONFIG, Base, WrongSettings, load
from shared.telemetry import Check, Checks, configure_logging, internal_server

EX_USAGE = 64  # sysexits.h
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PAUSE = (1.0, 30.0)
# The defaults look through all young objects 140 times for each 100,000 that a batch makes, and find nothing.
_COLLECT_AFTER = (100_000, 20, 20)
_PAUSES = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
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


def spare_collector() -> None:
    """For a process with a hot loop, once it has loaded what stays: the garbage collector passes over that from now on and
    comes more rarely, for what such a loop makes is freed without it. How long it took is in the metrics.
    """
    if not any(isinstance(callback, GcPauses) for callback in gc.callbacks):
        pauses = GcPauses()
        gc.callbacks.append(pauses)
        REGISTRY.register(pauses)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def keep_memory() -> None:
    """For a process that takes and frees megabytes all the time: they stay with it. The C library would give them back, and
    have the kernel clear them each time. Nothing changes where the C library is another."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)


class GcPauses(Collector):
    """How long the garbage collector held the process up. It may come at any moment: plain numbers, and no lock."""

    def __init__(self) -> None:
        self._began = 0.0
        self._counts = [0] * (len(_PAUSES) + 1)
        self._seconds = 0.0

    def __call__(self, phase: str, _info: Mapping[str, int]) -> None:
        """gc: it begins (`start`), or has ended."""
        if phase == "start":
            self._began = time.perf_counter()
            return
        seconds = time.perf_counter() - self._began
        self._seconds += seconds
        self._counts[bisect_left(_PAUSES, seconds)] += 1

    @override
    def collect(self) -> Iterable[Metric]:
        """The family, for the registry."""
        total, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, _PAUSES), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(
            "keyledger_gc_pause_seconds", "Pauses of the garbage collector", buckets=buckets, sum_value=self._seconds
        )


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
