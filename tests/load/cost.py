"""What a request costs the edge's own code: real gate, limiter, replica, ledger and request log, but wires instead of sockets,
so that a change of some percent shows within seconds: python -m tests.load.cost [--calls] [--seconds 2].
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typing_extensions import override

from services.edge.clock import boot_ns
from services.edge.identity import Identities
from services.edge.limiter import Limiter
from services.edge.replica.reader import ReplicaReader
from services.edge.replica.writer import ReplicaWriter, StateBatch
from services.edge.requestlog.writer import RequestLog
from services.edge.routes import Route, Table
from services.edge.serving.connection import ClientConnection
from services.edge.serving.connections import Clients
from services.edge.serving.edge import Edge
from services.edge.serving.gate import Gate
from services.edge.serving.ledger import Ledger
from services.edge.serving.metrics import Metrics
from services.edge.settings import EdgeSettings
from services.edge.upstream.connection import UpstreamConnection
from services.edge.upstream.pool import Pool
from shared.events.keys import Hash, KeyState, Limits
from shared.ids import new_secret
from tests.unit.edge import states

# As many as come in one turn of the event loop under load.
CLIENTS = 16
# Short ones: some find the machine undisturbed.
_SLICES = 50
_ORIGIN = "http://upstream:80"
_FIXED = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 01 Aug 2026 12:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 3\r\nConnection: keep-alive\r\n"
)


class Wire(asyncio.Transport):
    """Takes what is written, and keeps the last of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.count = 0

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    @override
    def is_closing(self) -> bool:
        return False

    @override
    def write(self, data: Any) -> None:
        self.sent = data
        self.count += 1

    @override
    def pause_reading(self) -> None:
        raise AssertionError("nothing here waits")


class Course:
    """Clients that each ask one thing a turn, and an upstream that answers them all in the next."""

    def __init__(self, directory: Path) -> None:
        secret = new_secret("test")
        settings = EdgeSettings.model_construct(upstream_connections=CLIENTS)
        replica = _replica(directory / "replica", secret.hash)
        metrics = Metrics()
        self._log = RequestLog.open(directory / "logs", edge_id="edge", partitions=4)
        ledger = Ledger(lambda: self._log, metrics)
        table = Table([Route("ping", "/ping", _ORIGIN, "route:ping")])
        gate = Gate(settings, table, replica, Limiter(), {}, ledger.writable)
        self._pool = Pool(_ORIGIN, connections_max=CLIENTS, connect_seconds=1, idle_seconds=60)
        edge = Edge(settings, gate, ledger, Identities(Ed25519PrivateKey.generate()), metrics, lambda _: self._pool)
        clients = Clients(edge)
        self._clients = [(ClientConnection(clients), Wire()) for _ in range(CLIENTS)]
        for client, wire in self._clients:
            client.connection_made(wire)
        self._upstreams = [(UpstreamConnection(self._pool), Wire()) for _ in range(CLIENTS)]
        for upstream, wire in self._upstreams:
            upstream.connection_made(wire)
            self._pool._open.add(upstream)
            self._pool.release(upstream)
        self.workloads: dict[str, tuple[Iterator[bytes], Iterator[bytes]]] = {
            "identical": (itertools.repeat(_identical(secret.text)), itertools.repeat(_FIXED + b"\r\nok\n")),
            "varied": (_varied(secret.text.encode()), _answers()),
        }

    async def run(self, name: str, seconds: float) -> tuple[float, int]:
        """Microseconds of this process's processor time a request, and how many requests were made."""
        asked, answered = self.workloads[name]
        # They are made as they are sent: read from memory where they have lain for long, they would cost more than from a socket.
        before = time.process_time_ns()
        for _ in range(4000):
            next(asked)
            next(answered)
        making = (time.process_time_ns() - before) / 4000
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        until = time.monotonic() + seconds
        count = 0

        def ask() -> None:
            nonlocal count
            if time.monotonic() >= until:
                done.set_result(None)
                return
            count += CLIENTS
            for client, _ in self._clients:
                client.data_received(next(asked))
            # After what was put off to the turn's end.
            loop.call_soon(answer)

        def answer() -> None:
            for upstream, _ in self._upstreams:
                upstream.data_received(next(answered))
            loop.call_soon(ask)

        before = time.process_time_ns()
        loop.call_soon(ask)
        await done
        return ((time.process_time_ns() - before) / count - making) / 1000, count

    def forget(self) -> None:
        """What was sent until now does not count."""
        for _, wire in (*self._clients, *self._upstreams):
            wire.count = 0

    def check(self, count: int) -> None:
        """Nothing is measured that did not happen."""
        for _, wire in (*self._clients, *self._upstreams):
            assert wire.count == count // CLIENTS, (wire.count, count)
        self.forget()
        for _, wire in self._clients:
            assert wire.sent.startswith(b"HTTP/1.1 200 OK\r\n") and wire.sent.endswith(b"\r\n\r\nok\n"), wire.sent

    def close(self) -> None:
        """Ends the log."""
        self._log.close()


def _replica(path: Path, key_hash: bytes) -> ReplicaReader:
    state = KeyState(
        id=7, owner_id=3, status="active", permissions=("read",), expires_at=None, addresses=(),
        limits=Limits(minute=10**9, hour=10**9, day=10**9), hashes=(Hash(hash=key_hash.hex()),),
    )  # fmt: skip
    records = ((b"key-7", states.event(state, "key-7")), states.owner(3), states.beat(0, 2))
    writer = ReplicaWriter.open(path, partitions=1)
    writer.apply([StateBatch(0, records, len(records))], boot_ns())
    writer.declare(ready=True)
    return ReplicaReader(path)


def _identical(secret: str) -> bytes:
    return b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-API-Key: %b\r\n\r\n" % secret.encode()


def _varied(secret: bytes) -> Iterator[bytes]:
    for number in itertools.count():
        yield (
            b"GET /ping/%d?page=%d HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nX-API-Key: %b\r\nX-Request-ID: request-%012x\r\n"
            b"traceparent: 00-%032x-%016x-01\r\n\r\n" % (number, number, secret, number, number, number)
        )


def _answers() -> Iterator[bytes]:
    for number in itertools.count():
        yield _FIXED + b'ETag: "%012x"\r\nX-Served: %d\r\n\r\nok\n' % (number, number)


class _Thing:
    """Something to call."""

    def __init__(self) -> None:
        self.value = b"X-A: b"
        self.known: dict[bytes, int] = {}

    def step(self, number: int) -> bytes:
        """What the edge's code does all the time."""
        value = self.value
        self.known[value] = self.known.get(value, 0) + number
        match = _LINE.fullmatch(value)
        return b"".join((value, b": ", match[1] if match else b"", b"%d" % number))


_LINE = re.compile(rb"([A-Za-z-]++): (.*+)")


def _yardstick() -> float:
    """Microseconds of a fixed piece of work now: other load makes both slow."""
    thing, before = _Thing(), time.process_time_ns()
    for number in range(4000):
        thing.step(number)
    return (time.process_time_ns() - before) / 4000 / 1000


def _calls(course: Course, loop: asyncio.AbstractEventLoop, name: str) -> str:
    """How often each of our functions is called for one request."""
    calls: Counter[tuple[str, str]] = Counter()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and "/tests/" not in frame.f_code.co_filename:
            calls[frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_qualname] += 1

    sys.setprofile(profile)
    try:
        _, count = loop.run_until_complete(course.run(name, 0.3))
    finally:
        sys.setprofile(None)
    course.check(count)
    lines = [f"{number / count:6.2f} {file}:{function}" for (file, function), number in calls.most_common()]
    return "\n".join([*lines, f"{calls.total() / count:6.2f} Python calls a request"])


def main() -> None:
    """Prints the cost of both workloads, the best of some rounds; with `--calls` what is called for a request."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.cost")
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        course = Course(Path(directory))
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        for name in course.workloads:
            loop.run_until_complete(course.run(name, 0.2))
            course.forget()
            if arguments.calls:
                sys.stdout.write(f"{name}\n{_calls(course, loop, name)}\n")
                continue
            found: list[tuple[float, float]] = []
            yardstick = _yardstick()
            for _ in range(_SLICES):
                cost, count = loop.run_until_complete(course.run(name, arguments.seconds / _SLICES))
                course.check(count)
                before, yardstick = yardstick, _yardstick()
                found.append((cost / ((before + yardstick) / 2), cost))
            relative = statistics.median(each for each, _ in found)
            sys.stdout.write(
                f"{name:10} {relative:6.2f} yards a request, at best {min(cost for _, cost in found):5.2f} µs\n"
            )
        course.close()


if __name__ == "__main__":
    main()
