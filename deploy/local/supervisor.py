"""Keeps the processes of one stack alive and publishes their state; it knows nothing of what they are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deploy.local.directory import Directory
from deploy.local.errors import StackError
from deploy.local.process import Process, describe_exit
from deploy.local.spec import Spec, run

_JOB_SECONDS = 60.0
_TAIL_LINES = 15
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Report = Callable[[str], None]


class Supervisor:
    """The processes of a directory, in the order of their start. Status goes to `<dir>/status.json` at each change."""

    def __init__(self, directory: Directory, report: Report, url: str = "") -> None:
        self.url = url
        self._directory = directory
        self._report = report
        self._processes: list[Process] = []
        self._changed = asyncio.Event()
        self._complete = False
        self._stopping = False

    async def start(self, specs: Iterable[Spec], deadline: float) -> None:
        """Start processes and wait until each was ready. Raises StackError with the end of its log if one will not be,
        or is not within the deadline (seconds)."""
        fresh = [Process(spec, self._directory.log(spec.name), self._publish, self._tell) for spec in specs]
        self._processes += fresh
        self._publish()
        try:
            async with asyncio.timeout(deadline):
                await self._until_ready(fresh)
        except TimeoutError:
            late = next(process for process in fresh if not process.ever_ready)
            raise _failure(late, f"is not ready after {deadline:g} s: {late.detail}") from None

    async def run(self, spec: Spec) -> None:
        """Run a job to its end. Raises StackError with the end of its log if it fails or takes longer than a minute."""
        log = self._directory.log(spec.name)
        try:
            async with asyncio.timeout(_JOB_SECONDS):
                code = await run(spec, log)
        except TimeoutError:
            raise StackError(f"{spec.name} did not end within {_JOB_SECONDS:g} s.{tail(log)}") from None
        if code != 0:
            raise StackError(f"{spec.name} {describe_exit(code)}.{tail(log)}")

    async def until_all_ready(self, deadline: float) -> None:
        """From now on the stack may be called ready; wait until it is."""
        self._complete = True
        self._publish()
        try:
            async with asyncio.timeout(deadline):
                while not self._ready():
                    await self._next_change()
        except TimeoutError:
            late = next(process for process in self._processes if not process.ready)
            raise _failure(late, f"is not ready after {deadline:g} s: {late.detail}") from None

    async def stop(self) -> None:
        """End all processes: those of one role at once, roles in the reverse order of their start."""
        self._stopping = True
        while self._processes:
            role = _stage(self._processes[-1])
            last = [process for process in self._processes if _stage(process) == role]
            await asyncio.gather(*(process.stop() for process in last))
            self._processes = [process for process in self._processes if process not in last]
            self._publish()

    def kill(self) -> None:
        """Kill all processes now, for a user who does not want to wait for `stop`."""
        for process in self._processes:
            process.kill()

    def end_on_signals(self) -> None:
        """SIGTERM and SIGINT cancel the current task, whose `finally` is to call `stop`; a second one kills what is left."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def end() -> None:
            for number in _END_SIGNALS:
                loop.add_signal_handler(number, self.kill)
            task.cancel()

        for number in _END_SIGNALS:
            loop.add_signal_handler(number, end)

    async def _until_ready(self, processes: list[Process]) -> None:
        waiting = list(processes)
        while waiting:
            await self._next_change()
            for process in [each for each in waiting if each.ever_ready]:
                self._tell(f"{process.spec.name} is ready")
                waiting.remove(process)
            if hopeless := next((process for process in waiting if process.hopeless), None):
                raise _failure(hopeless, "does not start")

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _ready(self) -> bool:
        below = (child for process in self._processes for child in process.children)
        if not self._complete or self._stopping:
            return False
        return all(process.ready for process in self._processes) and all(each["ready"] for each in below)

    def _stop_seconds(self) -> float:
        """What `stop` takes at most: its stages one after the other, each as long as the slowest in it may take."""
        slowest: dict[str, float] = {}
        for process in self._processes:
            stage = _stage(process)
            slowest[stage] = max(slowest.get(stage, 0), process.spec.stop_seconds)
        return sum(slowest.values())

    def _tell(self, news: str) -> None:
        if not self._stopping:
            self._report(news)

    def _publish(self) -> None:
        rows = [row for process in self._processes for row in _rows(process)]
        status = {"url": self.url, "ready": self._ready(), "stop_seconds": self._stop_seconds(), "processes": rows}
        write_status(self._directory, status)
        self._changed.set()


def write_status(directory: Directory, status: dict[str, Any]) -> None:
    """Replace status.json at once, so that a reader never sees half of it."""
    temporary = directory.status.with_name(f".status-{os.getpid()}")
    temporary.write_text(json.dumps(status))
    temporary.replace(directory.status)


def read_status(directory: Directory) -> dict[str, Any]:
    """`{"url", "ready", "stop_seconds", "processes": [{"name", "role", "pid", "ready", "restarts"}]}`: what ending it takes
    at most, and no processes if no supervisor runs."""
    stopped: dict[str, Any] = {"url": "", "ready": False, "stop_seconds": 0, "processes": []}
    try:
        status = json.loads(directory.status.read_text())
    except FileNotFoundError:
        return stopped
    return status if directory.holder() else stopped | {"url": status["url"]}


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log, as an indented paragraph for a message; nothing if there are none."""
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "".join(f"\n    {line}" for line in [f"The end of {log}:", *text]) if text else ""


def _failure(process: Process, what: str) -> StackError:
    return StackError(f"{process.spec.name} {what}.{tail(process.log)}")


def _rows(process: Process) -> list[dict[str, Any]]:
    spec = process.spec
    own = {
        "name": spec.name,
        "role": spec.role,
        "pid": process.pid,
        "ready": process.ready,
        "restarts": process.restarts,
    }
    return [own, *process.children]


def _stage(process: Process) -> str:
    """Services end together: they wait for each other in neither direction."""
    return "service" if process.spec.role in ("api", "worker") else process.spec.role
