"""One process of the stack over its whole life: started, asked whether it is ready, started again when it ends, stopped."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploy.local import probes
from deploy.local.spec import Spec, start

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
"""Seconds before a process that ended is started again: doubling from the first to the longest."""

SETTLED_AFTER = 10.0
"""A process that lived this long (seconds) begins with the first delay again: the edge's parent and Docker do so too."""

GIVE_UP_AFTER = 5
"""Ends before the process was ever ready that count as: it will never be."""

EX_CONFIG = 78
"""Exit code of a process whose settings are wrong (sysexits.h): starting it again can't help."""

_POLL_UNTIL_READY = 0.2
_POLL_WHEN_READY = 1.0


class Process:
    """Runs a spec for ever. `changed` is called after each change of pid, readiness or restarts, `report` with news to show."""

    def __init__(self, spec: Spec, log: Path, changed: Callable[[], None], report: Callable[[str], None]) -> None:
        self.spec = spec
        self.log = log
        self.ready = False
        self.ever_ready = False
        self.detail = "not started"
        self.restarts = 0
        self.children: list[dict[str, Any]] = []
        self._child: asyncio.subprocess.Process | None = None
        self._changed = changed
        self._report = report
        self._stopping = asyncio.Event()
        self._exit_code: int | None = None
        self._shown: object = None
        self._life = asyncio.create_task(self._live(), name=spec.name)
        self._life.add_done_callback(lambda _: changed())

    @property
    def pid(self) -> int | None:
        """Its process id, or None while it is down."""
        return self._child.pid if self._child else None

    @property
    def hopeless(self) -> bool:
        """Whether it was never ready and there is no reason to think that it will be."""
        if self._life.done():
            return True
        return not self.ever_ready and (self._exit_code == EX_CONFIG or self.restarts >= GIVE_UP_AFTER)

    async def stop(self) -> None:
        """End it with its own signal; kill its whole process group when that takes too long."""
        self._stopping.set()
        if self._child:
            _send(self._child.pid, self.spec.stop)
        done, _ = await asyncio.wait([self._life], timeout=self.spec.stop_seconds)
        if not done:
            self._report(f"{self.spec.name} did not end within {self.spec.stop_seconds:g} s: killed")
            self.kill()
        await asyncio.wait([self._life])

    def kill(self) -> None:
        """Kill its process group now; it is started again, unless it is being stopped."""
        if self._child:
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    send(self._child.pid, signal.SIGKILL)

    async def _live(self) -> None:
        delay = FIRST_DELAY
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            await self._run_once()
            if self._stopping.is_set():
                return
            if loop.time() - started >= SETTLED_AFTER:
                delay = FIRST_DELAY
            self._report(f"{self.spec.name} {describe_exit(self._exit_code)}; starting it again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _run_once(self) -> None:
        try:
            if self.spec.before:
                await self.spec.before()
            self._child = child = await start(self.spec, self.log)
        except OSError as error:
            self.restarts += 1
            self._set(False, str(error))
            return
        self._set(False, "starting")
        if self._stopping.is_set():
            _send(child.pid, self.spec.stop)
        watch = asyncio.create_task(self._watch())
        self._exit_code = await child.wait()
        watch.cancel()
        self._child = None
        self.restarts += not self._stopping.is_set()
        self._set(False, describe_exit(self._exit_code))

    async def _watch(self) -> None:
        while True:
            health = await probes.check(self.spec.probe) if self.spec.probe else probes.Health(True)
            self._set(health.ready, health.detail, health.processes)
            await asyncio.sleep(_POLL_WHEN_READY if health.ready else _POLL_UNTIL_READY)

    def _set(self, ready: bool, detail: str, children: Sequence[dict[str, Any]] = ()) -> None:
        if ready != self.ready and self.ever_ready and self.pid:
            self._report(f"{self.spec.name} {'is ready again' if ready else f'is not ready: {detail}'}")
        self.ready, self.detail, self.children = ready, detail, list(children)
        self.ever_ready |= ready
        if self._shown != (shown := (self.pid, ready, self.restarts, self.children)):
            self._shown = shown
            self._changed()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def describe_exit(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "is not running"
    if code >= 0:
        return f"ended with code {code}"
    return f"was ended by {signal.Signals(-code).name}"
