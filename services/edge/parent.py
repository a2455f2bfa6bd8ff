"""The edge's parent: opens the listening socket, keeps a serving process and an agent running, and tells of both under
one internal port. It serves no request itself, so it has little to die of.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from typing_extensions import override

from services.edge.descriptors import raise_limit
from services.edge.serving.process import listen
from services.edge.settings import STOP_SECONDS, EdgeSettings
from shared.process import until_signalled
from shared.settings import EX_CONFIG, WrongSettings
from shared.telemetry import Check

_BACK_OFF_SECONDS = (0.1, 5.0)
_STEADY_SECONDS = 10.0
_POLL_SECONDS = (0.1, 1.0)
_METRICS_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_log = structlog.get_logger()


@dataclass
class Child:
    """One child process and what is known of it."""

    role: str
    fds: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None
    port: int = 0
    restarts: int = 0
    ready: bool = False
    ever_ready: bool = False
    detail: str = "not started"
    metrics: str = ""

    def row(self) -> dict[str, Any]:
        """The child as /readyz lists it."""
        process = self.process
        pid = process.pid if process is not None and process.returncode is None else None
        name = f"edge-{self.role}"
        return {"name": name, "role": self.role, "pid": pid, "ready": self.ready, "restarts": self.restarts}


async def run(settings: EdgeSettings) -> None:
    """Runs the edge until SIGTERM or SIGINT. Raises `WrongSettings` when a child can't run with them."""
    raise_limit()
    lock, listening = _prepare(settings)
    parent = Parent(settings, listening)
    _report(parent.children)
    checks = {child.role: lambda child=child: Check(child.ready, child.detail) for child in parent.children}
    await until_signalled(
        settings.internal,
        checks,
        parent.run,
        leave=settings.leave_seconds,
        patience=settings.stop_seconds,
        extra=parent.page,
    )
    os.close(lock)


class Parent:
    """Keeps both children running, until it is told to stop."""

    def __init__(self, settings: EdgeSettings, listening: socket.socket) -> None:
        self._settings = settings
        self._listening = listening
        self._port = listening.getsockname()[1]
        self.serving, self.agent = Child("serving", (listening.fileno(),)), Child("agent")
        self.children = [self.serving, self.agent]

    def page(self) -> dict[str, Any]:
        """What /readyz says besides the checks."""
        return {"port": self._port, "processes": [child.row() for child in self.children]}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Raises `WrongSettings` when a child says so while nothing was ever served."""
        environment = os.environ | {
            "KEYLEDGER_EDGE_PARENT": str(os.getpid()),
            "KEYLEDGER_EDGE_SESSION": secrets.token_hex(8),
            "KEYLEDGER_EDGE_SOCKET": str(self._listening.fileno()),
        }
        _log.info("edge started", port=self._port, edge=self._settings.edge_id())
        keepers = [asyncio.ensure_future(self._keep(child, environment, stop)) for child in self.children]
        pollers = [asyncio.ensure_future(_poll(child)) for child in self.children]
        stopped = asyncio.ensure_future(stop.wait())
        # A keeper ends before only when there is nothing to keep.
        await asyncio.wait([*keepers, stopped], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        self._listening.close()
        # The agent last: it ships what the serving process wrote in the end.
        await _end(self.serving, keepers[0], self._settings.serving_stop_seconds)
        await _end(self.agent, keepers[1], 2 * STOP_SECONDS)
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*keepers)

    async def _keep(self, child: Child, environment: dict[str, str], stop: asyncio.Event) -> None:
        """Keeps a child running until told to stop."""
        least, most = _BACK_OFF_SECONDS
        wait = least
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            started = loop.time()
            status = await _run(child, environment, stop)
            if stop.is_set():
                return
            if status == EX_CONFIG and not self.serving.ever_ready:
                raise WrongSettings(f"the {child.role} process can't run with these settings: see above")
            wait = least if loop.time() - started > _STEADY_SECONDS else min(wait * 2, most)
            _log.error("a child has ended", role=child.role, status=status, again_in_seconds=wait)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait)
            child.restarts += 1


async def _run(child: Child, environment: dict[str, str], stop: asyncio.Event) -> int:
    """One life of a child: its exit status."""
    child.port = _free_port()
    child.process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.edge",
        child.role,
        env=environment | {"KEYLEDGER_INTERNAL_HOST": "127.0.0.1", "KEYLEDGER_INTERNAL_PORT": str(child.port)},
        pass_fds=child.fds,
    )
    if stop.is_set():
        child.process.send_signal(signal.SIGTERM)
    status = await child.process.wait()
    child.ready, child.detail = False, f"ended with status {status}"
    return status


def _prepare(settings: EdgeSettings) -> tuple[int, socket.socket]:
    """Takes the data directory and opens the socket, or raises `WrongSettings` with all that is wrong."""
    errors: list[str] = []
    lock, listening = -1, None
    try:
        lock = _take(settings)
    except OSError as error:
        errors.append(f"KEYLEDGER_EDGE_DATA: {settings.data}: {error.strerror}")
    except BlockingError as error:
        errors.append(f"KEYLEDGER_EDGE_DATA: {error}")
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        errors.append(f"KEYLEDGER_EDGE_PORT: {settings.host}:{settings.port}: {error.strerror}")
    if errors or listening is None:
        raise WrongSettings("\n".join(errors))
    return lock, listening


class BlockingError(Exception):
    """Another edge has the data directory."""


def _take(settings: EdgeSettings) -> int:
    """Makes the data directory this edge's, with an id that stays; the open lock file is its proof."""
    settings.data.mkdir(parents=True, exist_ok=True)
    lock = os.open(settings.data / "edge.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BlockingError(f"{settings.data} is in use by another edge") from None
    if not settings.edge_id_path.exists():
        _write(settings.edge_id_path, secrets.token_hex(16) + "\n")
    return lock


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def _free_port() -> int:
    # Somebody may take it before the child does: the child then ends, and gets another.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _end(child: Child, keeper: asyncio.Future[None], patience: float) -> None:
    process = child.process
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    done, _ = await asyncio.wait([keeper], timeout=patience)
    if not done:
        _log.error("a child did not end in time", role=child.role)
        if child.process is not None:
            with suppress(ProcessLookupError):
                child.process.kill()
        await asyncio.wait([keeper])


async def _poll(child: Child) -> None:
    """Asks a child how it is, often until it is ready."""
    often, seldom = _POLL_SECONDS
    loop = asyncio.get_running_loop()
    metrics_due = 0.0
    while True:
        await asyncio.sleep(seldom if child.ready else often)
        if child.process is None or child.process.returncode is not None:
            continue
        pid = child.process.pid
        found = await _get(child.port, "/readyz")
        if child.process.pid == pid and child.process.returncode is None:
            child.ready, child.detail = _judge(found)
            child.ever_ready |= child.ready
        if found and loop.time() >= metrics_due:
            child.metrics = await _get(child.port, "/metrics") or child.metrics
            metrics_due = loop.time() + _METRICS_SECONDS


def _judge(body: str) -> tuple[bool, str]:
    try:
        found = msgspec.json.decode(body.encode(), type=_Readiness)
    except msgspec.MsgspecError:
        return False, "does not answer"
    failing = [f"{name}: {check.detail}" for name, check in found.checks.items() if not check.ready]
    return found.ready, "; ".join(failing) or "ready"


class _Check(msgspec.Struct):
    ready: bool
    detail: str = ""


class _Readiness(msgspec.Struct):
    ready: bool
    checks: dict[str, _Check]


async def _get(port: int, path: str) -> str:
    """The body of a child's internal page, empty when it does not answer."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (TimeoutError, OSError):
        return ""
    return answer.partition(b"\r\n\r\n")[2].decode()


class _ChildrensMetrics(Collector):
    """The children's figures as last seen, each with the label `process`."""

    def __init__(self, children: list[Child]) -> None:
        self._children = children

    @override
    def collect(self) -> Iterable[Metric]:
        """The families of all children, merged by name."""
        families: dict[str, Metric] = {}
        for child in self._children:
            for family in text_string_to_metric_families(child.metrics):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels=sample.labels | {"process": child.role}))
        return families.values()


def _report(children: list[Child]) -> None:
    for own in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
        REGISTRY.unregister(own)
    REGISTRY.register(_ChildrensMetrics(children))
