"""The serving process: puts its parts together, waits for its slot, restores the limits, and serves until it is told to
stop. Then it lets what is under way end.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from contextlib import closing
from pathlib import Path

import structlog
from prometheus_client import REGISTRY

from services.edge import compiled
from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.descriptors import BACKLOG, raise_limit, shares
from services.edge.identity import Identities, load_key
from services.edge.limiter import Limiter
from services.edge.replica.reader import ReplicaReader
from services.edge.requestlog.snapshot import restore
from services.edge.requestlog.writer import RequestLog
from services.edge.serving.connections import Clients
from services.edge.serving.documents import documents
from services.edge.serving.edge import Edge
from services.edge.serving.gate import Gate
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.settings import EdgeSettings
from services.edge.upstream.pool import Pool
from shared.process import spare_collector, until_signalled
from shared.telemetry import Check

_SLOT = "0"
_POLL_SECONDS = 0.02
_SWEEP_SECONDS = 0.25
_HEADS_POLLS = 50
_log = structlog.get_logger()


class Serving:
    """A serving process's parts, and how they stand."""

    def __init__(self, settings: EdgeSettings, backlog: int) -> None:
        self.settings = settings
        self.backlog = backlog
        self.metrics = Metrics()
        self.limiter = Limiter()
        self.replica = ReplicaReader(settings.replica_path, settings.session)
        self.ledger = Ledger(self._open_log, self.metrics, client_addresses=settings.log_client_address)
        self._pools: dict[str, Pool] = {}
        self.clients = Clients(self._edge(), backlog)
        self.serving = False

    def checks(self) -> dict[str, Check]:
        """What must be well for requests to be served."""
        status = self.replica.status()
        age = (boot_ns() - status.fresh_ns) / SECOND
        detail = f"last heartbeat {age:.1f} s ago" if status.fresh_ns else "no heartbeat yet"
        return {
            "slot": Check(self.serving, "held" if self.serving else "waiting for the process before"),
            "log": Check(not self.serving or self.ledger.writable(), self.ledger.log_id or "none"),
            "replica": Check(self.clients.edge.gate.ready(boot_ns()), detail),
        }

    def sweep(self) -> None:
        """What is due now and then: deadlines, idle connections, keys that no longer count."""
        now = boot_ns()
        self.clients.end_overdue(now)
        self.limiter.forget(now)
        self.clients.edge.gate.sweep(wall_ns())
        for upstream in self._pools.values():
            upstream.close_idle(now)

    def close(self) -> None:
        """Ends the log and what is left of connections."""
        for upstream in self._pools.values():
            upstream.close()
        self.clients.edge.gate.close()
        self.ledger.close()
        self.replica.close()

    def _edge(self) -> Edge:
        settings = self.settings
        identities = Identities(load_key(settings.identity_key))
        public = documents(identities.jwks())
        gate = Gate(settings, settings.table(), self.replica, self.limiter, public, self.ledger.writable)
        return Edge(settings, gate, self.ledger, identities, self.metrics, self._pool)

    def _pool(self, origin: str) -> Pool:
        upstream = self._pools.get(origin)
        if upstream is None:
            settings = self.settings
            upstream = self._pools[origin] = Pool(
                origin,
                connections_max=settings.upstream_connections,
                connect_seconds=settings.connect_seconds,
                idle_seconds=settings.upstream_idle_seconds,
            )
        return upstream

    def _open_log(self) -> RequestLog:
        settings = self.settings
        return RequestLog.open(
            settings.logs_path,
            edge_id=settings.edge_id(),
            partitions=settings.partitions,
            sync_interval=settings.sync_interval,
            budget=settings.disk_budget,
        )


async def run(settings: EdgeSettings) -> None:
    """Serves until SIGTERM, and drains."""
    if compiled.STATE == "stale":
        _log.warning("slower than it could be", form=compiled.describe())
    serving = Serving(*_within_limits(settings))
    REGISTRY.register(serving.metrics)
    checks = {name: (lambda name=name: serving.checks()[name]) for name in ("slot", "log", "replica")}

    async def part(stop: asyncio.Event) -> None:
        with closing(Slot(settings.slots_path)) as slot:
            if await slot.taken(stop):
                _restore(serving)
                await _serve(serving, slot, stop)

    await until_signalled(settings.internal, checks, part, patience=settings.serving_stop_seconds)


def _within_limits(settings: EdgeSettings) -> tuple[EdgeSettings, int]:
    """The settings with as many connections as there may be files, and how many may wait to be accepted."""
    limit = raise_limit()
    clients, upstream = settings.connections_max, settings.upstream_connections
    upstreams = len({route.upstream for route in settings.table().routes})
    found = shares(limit, clients=clients, upstream=upstream, upstreams=upstreams)
    if (found.clients, found.upstream) != (clients, upstream):
        _log.warning(
            "fewer connections than are set: the hard limit of open files (ulimit -Hn) is too low",
            files=limit,
            connections_max=found.clients,
            upstream_connections=found.upstream,
        )
    lowered = {"connections_max": found.clients, "upstream_connections": found.upstream}
    return settings.model_copy(update=lowered), found.backlog


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class Slot:
    """The right to admit, one process's at a time: what another may still admit is not in our limits."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / f"{_SLOT}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def taken(self, stop: asyncio.Event) -> bool:
        """Waits for the process before to give it up; False when `stop` was set meanwhile."""
        while not stop.is_set():
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return True
        return False

    def give_up(self) -> None:
        """Lets the next process admit: this one never does again."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives it up, if that was not done."""
        os.close(self._file)


def _restore(serving: Serving) -> None:
    settings = serving.settings
    unreadable = restore(settings.logs_path, serving.limiter, boot_ns(), wall_ns())
    if unreadable:
        _log.error("request logs can't be read; what they admitted is not limited", logs=unreadable)
    spare_collector()


async def _serve(serving: Serving, slot: Slot, stop: asyncio.Event) -> None:
    settings = serving.settings
    loop = asyncio.get_running_loop()
    listening = socket.socket(fileno=settings.socket) if settings.socket is not None else None
    listening = listening or listen(settings.host, settings.port)
    # A log that can't be begun yet is no reason to say that the slot is not held: on a full disk it comes later.
    serving.serving = True
    serving.ledger.writable()
    server = await loop.create_server(serving.clients.accepted, sock=listening, backlog=serving.backlog)
    sweeping = loop.create_task(_sweep(serving))
    _log.info("serving", port=listening.getsockname()[1], log=serving.ledger.log_id, form=compiled.STATE)
    await stop.wait()
    server.close()
    await _drain(serving, slot)
    sweeping.cancel()
    serving.close()


async def _sweep(serving: Serving) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            serving.sweep()
        except Exception:
            _log.exception("the sweep failed")


async def _drain(serving: Serving, slot: Slot) -> None:
    """Lets the requests under way end, in time, and the next process serve beside them."""
    clients = serving.clients
    clients.drain()
    try:
        async with asyncio.timeout(serving.settings.drain_seconds):
            await _admit_the_last(clients)
            # What is open is in the log by now, where the next process finds what counts.
            if serving.ledger.note_all():
                slot.give_up()
            await clients.drained.wait()
    except TimeoutError:
        clients.abort()
        await clients.drained.wait()


async def _admit_the_last(clients: Clients) -> None:
    """Requests whose head is on its way are still served, if it comes soon."""
    for _ in range(_HEADS_POLLS):
        if not clients.admitting():
            break
        await asyncio.sleep(_POLL_SECONDS)
    clients.turn_away()
