"""Clients, and upstreams, that are slow, half gone or too many: each ends by a deadline and is counted once, memory stays
bounded, and others are served meanwhile, how quickly is printed.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from shared.ids import new_secret
from tests.integration.edge.conftest import ROUTES
from tests.integration.edge.upstream import Seen, Upstream
from tests.integration.edge.world import Raw, World, request
from tests.support.eventually import eventually_sync

KB = 1024
MIB = 1024 * KB
CONNECTIONS = 64
SETTINGS = {
    "head_seconds": "1.5",
    "idle_seconds": "3",
    "body_idle_seconds": "3",
    "pressed_seconds": "0.5",
    "upstream_connections": "4",
    "connections_max": str(CONNECTIONS),
    "held_max": str(MIB),
    "open_requests": "3",
}
# What a shared machine may add to a deadline, and what a client that harms nobody must never wait for.
SLACK = 10.0
UNHARMED = 5.0


@pytest.fixture(scope="module")
def tight(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An edge with little of everything."""
    settings = {f"KEYLEDGER_EDGE_{name.upper()}": value for name, value in SETTINGS.items()}
    made = World(tmp_path_factory.mktemp("tight"), upstream, ROUTES.format(origin=upstream.origin), settings)
    made.ready()
    try:
        yield made.start().until_ready()
    finally:
        made.stop()


@contextmanager
def others(world: World, name: str) -> Iterator[None]:
    """Another client asks all the time, with a key of its own: it must be served throughout."""
    key = world.key()
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    over = threading.Event()
    client = world.raw()

    def ask() -> None:
        while not over.is_set():
            started = time.monotonic()
            client.send(request("/echo/others", key))
            statuses[client.response().status] += 1
            seconds.append(time.monotonic() - started)
            over.wait(0.005)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        eventually_sync(lambda: len(seconds) > 10)
        yield
    finally:
        over.set()
        asking.join(30)
        client.socket.close()
    p99 = sorted(seconds)[len(seconds) * 99 // 100]
    worst = max(seconds) * 1000
    print(f"{name}: others' p99 {p99 * 1000:.1f} ms, worst {worst:.1f} ms of {len(seconds)}")  # noqa: T201
    assert set(statuses) == {200}
    assert max(seconds) < UNHARMED


@contextmanager
def crowd(world: World, count: int) -> Iterator[list[Raw]]:
    with ExitStack() as stack:
        yield [stack.enter_context(world.raw()) for _ in range(count)]


def ended(client: Raw) -> bool:
    """Whether the edge has ended the connection, whatever it sent before."""
    client.socket.settimeout(0.01)
    try:
        while data := client.socket.recv(65536):
            client._buffer += data
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def drip(clients: list[Raw], piece: bytes) -> None:
    """Sends a piece on each connection that still stands."""
    for client in clients:
        with suppress(OSError):
            client.send(piece)


def all_end(clients: list[Raw], within: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    def over() -> bool:
        meanwhile()
        states = [ended(client) for client in clients]
        return all(states)

    eventually_sync(over, within + SLACK, interval=0.1)


def status(client: Raw) -> int:
    return int(client._buffer.split(b" ", 2)[1]) if client._buffer else 0


def resident(world: World) -> int:
    """Bytes of memory that the serving process has."""
    return int(Path(f"/proc/{world.pid}/statm").read_text().split()[1]) * 4096


def test_heads_that_drip(tight: World) -> None:
    with others(tight, "heads that drip"), crowd(tight, 40) as clients:
        drip(clients, b"GET /echo/x HTTP/1.1\r\n")
        all_end(clients, 1.5, lambda: drip(clients, b"A: b\r\n"))
        assert {status(client) for client in clients} == {408}


def test_heads_that_are_huge(tight: World) -> None:
    before = resident(tight)
    with others(tight, "heads that are huge"), crowd(tight, 50) as clients:
        drip(clients, b"GET /echo/x HTTP/1.1\r\nA: " + b"b" * 31 * KB)
        all_end(clients, 1.5)
        assert Counter(map(status, clients)).keys() <= {503, 408}
        assert resident(tight) - before < 16 * MIB
        with tight.raw() as client:
            client.send(b"GET /echo/x HTTP/1.1\r\nA: " + b"b" * 33 * KB)
            assert client.response().status == 431


def test_bodies_that_drip(tight: World) -> None:
    """As many as two keys may have under way, more than the upstream has connections: first they take them all."""
    slow = [tight.key() for _ in range(2)]
    path = "/echo/dripping"
    with others(tight, "bodies that drip"), crowd(tight, 8) as clients:
        for number, client in enumerate(clients):
            client.send(request(path, slow[number % 2], "POST", Content_Length="100000") + b"x")
        all_end(clients, 6, lambda: drip(clients, b"x"))
        assert Counter(map(status, clients)) == {408: 6, 429: 2}
    assert Counter(record.status_code for record in tight.settled(path)) == {408: 6, 429: 2}


def test_a_body_that_drips_ends_with_its_key(tight: World) -> None:
    secret = new_secret("test")
    tight.state(901, secret, 1)
    with others(tight, "a body whose key is revoked"), tight.raw() as client:
        client.send(request("/echo/revoked", secret.text, "POST", Content_Length="100000") + b"x")
        eventually_sync(lambda: tight.metric("keyledger_edge_in_flight") >= 1)
        tight.state(901, secret, 2, status="revoked")
        all_end([client], 1.5, lambda: drip([client], bytes(2 * KB)))
        assert status(client) == 401
    assert [record.status_code for record in tight.settled("/echo/revoked")] == [401]


def test_answers_that_nobody_takes(tight: World) -> None:
    async def large(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * MIB) + bytes(8 * MIB))
        with suppress(ConnectionError):
            await writer.drain()

    tight.upstream.behaviours["/echo/large"] = large
    keys = [tight.key() for _ in range(4)]
    before = resident(tight)
    with others(tight, "answers that nobody takes"), crowd(tight, 12) as clients:
        for number, client in enumerate(clients):
            client.send(request("/echo/large", keys[number % 4]))
        eventually_sync(lambda: tight.metric("keyledger_edge_in_flight") == 0 or None, 4 + SLACK)
        assert resident(tight) - before < 24 * MIB
    assert [record.status_code for record in tight.settled("/echo/large")] == [200] * 12


def test_requests_whose_sender_has_ended(tight: World) -> None:
    """A client that ends its side is taken for gone, as nginx does."""
    key = tight.key()
    with others(tight, "half-closed clients"), crowd(tight, 30) as clients:
        for number, client in enumerate(clients):
            client.send(request(f"/echo/half-closed/{number}", key)[: None if number % 2 else -2])
            client.socket.shutdown(socket.SHUT_WR)
        all_end(clients, 1)
        eventually_sync(lambda: tight.metric("keyledger_edge_in_flight") <= 1)
    records = Counter(r.endpoint for r in tight.records() if r.endpoint.startswith("/echo/half-closed/"))
    assert set(records.values()) <= {1}
    assert all(int(path.rsplit("/", 1)[1]) % 2 for path in records)


def test_an_upstream_that_hangs(tight: World) -> None:
    """One key's requests take their share of its connections and no more."""

    async def hang(_seen: Seen, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    tight.upstream.behaviours["/quick/hang"] = hang
    key = tight.key()
    with others(tight, "an upstream that hangs"), crowd(tight, 20) as clients:
        for client in clients:
            client.send(request("/quick/hang", key))
        answers = Counter(client.response().status for client in clients)
    assert answers == {504: 3, 429: 17}
    assert Counter(record.status_code for record in tight.settled("/quick/hang")) == answers


def test_more_connections_than_may_be(tight: World) -> None:
    key = tight.key()
    with others(tight, "too many connections"), crowd(tight, CONNECTIONS + 20) as clients:
        eventually_sync(lambda: sum(ended(client) for client in clients) >= 20)
        all_end(clients, 1.5)
        assert {status(client) for client in clients} == {0, 503}
        assert tight.get("/echo/newcomer", key).status == 200
