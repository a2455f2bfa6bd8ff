"""A serving process without a socket: the real gate, ledger, connections and pools between wires that a test holds both ends
of, on a loop whose time stands still until the test lets it pass. What happens in one `turn` happens, in that order, before
anything that follows from it: so every order of events within a turn can be played.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import override

from services.edge.clock import SECOND
from services.edge.domain import KeyState, Limits, OwnerState
from services.edge.identity import Identities
from services.edge.limiter import Limiter
from services.edge.replica.reader import ReplicaReader, ReplicaStatus
from services.edge.requestlog.writer import LogFailed, Note, Record, RequestLog
from services.edge.routes import PLATFORM_AUDIENCE, Route, Table
from services.edge.serving.connection import ClientConnection
from services.edge.serving.connections import Clients
from services.edge.serving.edge import Edge
from services.edge.serving.gate import Gate
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.settings import EdgeSettings
from services.edge.upstream.connection import UpstreamConnection
from services.edge.upstream.pool import Pool
from shared.ids import new_secret

HIGH_WATER = 64 * 1024
NO_LIMITS = Limits()
_WALL = 1_800_000_000
_REQUEST = re.compile(rb"[A-Z]+ (/\S+) HTTP/1\.1\r\n")
_SWEEP_SECONDS = 0.25


class _Idle(selectors.DefaultSelector):
    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Never waits. `dials` are the connections to upstreams that were asked for and not yet answered."""

    def __init__(self) -> None:
        super().__init__(_Idle())
        self.now = 1000.0
        self.dials: list[Dial] = []
        self.errors: list[object] = []
        self.set_exception_handler(
            lambda _, context: self.errors.append(context.get("exception") or context["message"])
        )

    @override
    def time(self) -> float:
        return self.now

    @override
    async def create_connection(self, factory: Any, *_: Any, **__: Any) -> Any:  # type: ignore[bad-override]
        dial = Dial(self, factory)
        self.dials.append(dial)
        try:
            return await dial.made
        except BaseException:
            dial.given_up()
            raise


class Wire(asyncio.Transport):
    """Our end of a connection, and the peer's hands: `receive`, `end`, `reset`, `stick`, `drain`. `sent` is what the peer got,
    `answered` for the test to count what the peer did."""

    def __init__(self, loop: Loop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.sent = b""
        self.answered = 0
        self.lost = False
        self.ended = False
        self.reading = True
        self.stuck = False
        self._loop = loop
        self._protocol = protocol
        self._closing = False
        self._full = False
        self._backlog = b""
        self._arrived: list[bytes | None] = []
        protocol.connection_made(self)

    # Our side

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1234) if name == "peername" else default

    @override
    def get_write_buffer_size(self) -> int:
        return len(self._backlog)

    @override
    def is_closing(self) -> bool:
        return self._closing

    @override
    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        if self._closing:
            return
        assert not (self._full and _REQUEST.match(data)), "given to another while it still has to send"
        if not self.stuck:
            self.sent += data
            return
        self._backlog += data
        if len(self._backlog) > HIGH_WATER and not self._full:
            self._full = True
            self._protocol.pause_writing()

    @override
    def write_eof(self) -> None:
        self.ended = True

    @override
    def pause_reading(self) -> None:
        self.reading = False

    @override
    def resume_reading(self) -> None:
        self.reading = True
        self._loop.call_soon(self._deliver)

    @override
    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._backlog:
                self._loop.call_soon(self._lose, None)

    @override
    def abort(self) -> None:
        self._closing = True
        self._backlog = b""
        self._loop.call_soon(self._lose, None)

    # The peer's side

    def receive(self, data: bytes) -> None:
        """The peer sends."""
        self._arrived.append(data)
        self._deliver()

    def end(self) -> None:
        """The peer sends no more."""
        self._arrived.append(None)
        self._deliver()

    def reset(self) -> None:
        """The peer is gone."""
        self._closing = True
        self._lose(ConnectionResetError())

    def stick(self) -> None:
        """The peer takes nothing."""
        self.stuck = True

    def drain(self) -> None:
        """The peer takes all."""
        self.stuck = False
        if self.lost:
            return
        self.sent += self._backlog
        self._backlog = b""
        if self._full:
            self._full = False
            self._protocol.resume_writing()
        if self._closing:
            self._loop.call_soon(self._lose, None)

    def _deliver(self) -> None:
        while self._arrived and self.reading and not self._closing:
            data = self._arrived.pop(0)
            if data is not None:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._protocol.connection_lost(error)


class Dial:
    """A connection to an upstream that is being made."""

    def __init__(self, loop: Loop, factory: Callable[[], UpstreamConnection]) -> None:
        self.made: asyncio.Future[Any] = loop.create_future()
        self.wire: Wire | None = None
        self._loop = loop
        self._factory = factory

    def accept(self) -> Wire:
        """It stands; whoever asked for it learns so in the next turn."""
        protocol = self._factory()
        self.wire = Wire(self._loop, cast(asyncio.Protocol, protocol))
        self._loop.dials.remove(self)
        self.made.set_result((self.wire, protocol))
        return self.wire

    def fail(self, error: Exception) -> None:
        """There is none to be had."""
        self._loop.dials.remove(self)
        self.made.set_exception(error)

    def given_up(self) -> None:
        """Who asked for it does not want it any more."""
        if self in self._loop.dials:
            self._loop.dials.remove(self)
        if self.wire is not None:
            self.wire.close()


class Replica:
    """Keys and owners in a dictionary."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyState] = {}
        self.moment = 0

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(ready=True, fresh_ns=1 << 61, complete=True, beats=())

    def lookup(self, key_hash: bytes) -> tuple[KeyState, OwnerState | None] | None:
        key = self.keys.get(key_hash)
        return None if key is None else (key, OwnerState(key.owner_id, 1, 1, "active"))


class Log:
    """A request log in a list; `full`: it takes nothing."""

    id = "log"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.full = False
        self._buffer: list[Record | Note] = []

    def adopt(self, items: Iterable[Record | Note]) -> None:
        self._buffer += items

    def flush(self) -> None:
        items, self._buffer = self._buffer, []
        if self.full:
            raise LogFailed("full", items)
        self.records += [item for item in items if isinstance(item, Record)]

    def close(self) -> None:
        self.flush()


class Stage:
    """The edge and what surrounds it. Routes: `/echo` (a key), `/open` (public), `/api/v1/api-keys` (the platform's own)."""

    def __init__(self, **settings: Any) -> None:
        self.loop = Loop()
        self.log = Log()
        self.replica = Replica()
        self.metrics = Metrics()
        self.pools: dict[str, Pool] = {}
        self.clients: list[Wire] = []
        self.upstreams: list[Wire] = []
        self._stack = [patch.object(module, name, clock) for module, name, clock in self._clocks()]
        for each in self._stack:
            each.start()
        self.settings = EdgeSettings.model_construct(**settings)
        self.limiter = Limiter()
        self.ledger = Ledger(self._open_log, self.metrics)
        routes = [
            Route("echo", "/echo", "http://echo", "route:echo"),
            Route("open", "/open", "http://echo", "route:open", public=True),
            Route("keys", "/api/v1/api-keys", "http://keys", PLATFORM_AUDIENCE),
        ]
        replica = cast(ReplicaReader, self.replica)
        self.gate = Gate(self.settings, Table(routes), replica, self.limiter, {}, self.ledger.writable)
        identities = Identities(Ed25519PrivateKey.generate())
        self.edge = Edge(self.settings, self.gate, self.ledger, identities, self.metrics, self._pool)
        self.home = Clients(self.edge)

    def close(self) -> None:
        """Ends the loop and gives the clocks back."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turns(3)
        self.loop.close()
        for each in self._stack:
            each.stop()

    # Time

    def turn(self, *events: Callable[[], object]) -> None:
        """One turn of the loop: these events, after what earlier turns left to do."""
        for event in events:
            self.loop.call_soon(event)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        assert not self.loop.errors, self.loop.errors

    def turns(self, count: int = 6) -> None:
        """So many turns in which nothing happens from outside."""
        for _ in range(count):
            self.turn()

    def wait(self, seconds: float) -> None:
        """Lets time pass, with the sweep coming round as it does."""
        until = self.loop.now + seconds
        while self.loop.now < until:
            self.loop.now = min(until, self.loop.now + _SWEEP_SECONDS)
            self.turn(self.sweep)
            self.turns(4)

    def sweep(self) -> None:
        """What the serving process does now and then."""
        now = self._boot_ns()
        self.home.end_overdue(now)
        for pool in self.pools.values():
            pool.close_idle(now)

    # Who is there

    def key(self, key_id: int = 1, limits: Limits = NO_LIMITS) -> str:
        """A key's secret."""
        secret = new_secret("test")
        self.replica.keys[secret.hash] = KeyState(
            key_id, key_id, 1, 1, "active", limits=limits, hashes=((secret.hash, None),)
        )
        return secret.text

    def refuse(self, key_id: int) -> None:
        """Revokes a key."""
        for key_hash, key in self.replica.keys.items():
            if key.id == key_id:
                self.replica.keys[key_hash] = KeyState(key.id, key.owner_id, 1, 2, "revoked", hashes=key.hashes)
        self.replica.moment += 1

    def client(self) -> Wire:
        """A client that has connected."""
        made: list[Wire] = []
        self.turn(lambda: made.append(Wire(self.loop, cast(asyncio.Protocol, self._protocol()))))
        self.clients += made
        return made[0]

    def accept(self) -> Wire:
        """The connection that was asked for first is made; its asker has it when this returns."""
        made: list[Wire] = []
        self.turn(lambda: made.append(self.loop.dials[0].accept()))
        self.upstreams += made
        self.turns(3)
        return made[0]

    def asked(self, upstream: Wire) -> list[str]:
        """The paths that an upstream was asked for on a connection."""
        return [path.decode() for path in _REQUEST.findall(upstream.sent)]

    def statuses(self, client: Wire) -> list[int]:
        """The statuses of what a client was answered."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", client.sent)]

    def recorded(self) -> list[tuple[str, int]]:
        """Path and status of each record."""
        return [(record.endpoint, record.status_code) for record in self.log.records]

    def _protocol(self) -> ClientConnection:
        return self.home.connection()

    def _pool(self, origin: str) -> Pool:
        settings = self.settings
        if origin not in self.pools:
            self.pools[origin] = Pool(
                origin,
                connections_max=settings.upstream_connections,
                connect_seconds=settings.connect_seconds,
                idle_seconds=settings.upstream_idle_seconds,
            )
        return self.pools[origin]

    def _open_log(self) -> RequestLog:
        if self.log.full:
            raise LogFailed("full", ())
        return cast(RequestLog, self.log)

    def _boot_ns(self) -> int:
        return int(self.loop.now * SECOND)

    def _wall_ns(self) -> int:
        return self._boot_ns() + _WALL * SECOND

    def _clocks(self) -> Iterable[tuple[Any, str, Callable[[], int]]]:
        for name, module in list(sys.modules.items()):
            if name.startswith("services.edge.") and name != "services.edge.clock":
                for clock, ours in (("boot_ns", self._boot_ns), ("wall_ns", self._wall_ns)):
                    if hasattr(module, clock):
                        yield module, clock, ours


def ask(path: str, key: str | None = None, method: str = "GET", body: bytes = b"", **headers: object) -> bytes:
    """A well-formed request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: h", *([f"X-API-Key: {key}"] if key else [])]
    lines += [f"Content-Length: {len(body)}"] if body else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(body: bytes = b"ok", status: int = 200, fields: bytes = b"") -> bytes:
    """A response, whole."""
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)
