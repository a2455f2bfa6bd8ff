"""Upstreams that fail, clients that go away, logs that can't be written: each admitted request has its one row all the
same, and no answer is given that is not counted.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.edge import clock
from services.edge.requestlog.reader import logs
from services.edge.requestlog.writer import Note
from shared.events.keys import Limits
from shared.ids import new_secret
from tests.integration.edge.upstream import Seen, Upstream, plain, read_body, then_close
from tests.integration.edge.world import Raw, World, request, within
from tests.support.eventually import eventually_sync

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Make = Callable[..., World]


async def hang(_seen: Seen, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def die(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


# Upstreams that give no answer


def test_an_upstream_that_is_not_there(world: World, key: str) -> None:
    response = world.get("/nobody/x", key)
    assert (response.status, response.json["code"]) == (502, "bad_gateway")
    record = world.record(response.header("x-request-id"))
    assert (record.status_code, record.decision, record.route) == (502, "allowed", "nobody")


def test_an_upstream_that_does_not_answer(world: World, key: str) -> None:
    world.upstream.behaviours["/quick/hang"] = hang
    started = time.monotonic()
    response = world.get("/quick/hang", key)
    assert (response.status, response.json["code"]) == (504, "gateway_timeout")
    assert 0.5 <= time.monotonic() - started < 2
    record = world.record(response.header("x-request-id"))
    assert (record.status_code, record.decision, record.noted) == (504, "allowed", True)


BAD_HEADS = {
    "nothing": b"",
    "garbage": b"\x00\x01\x02\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 2\r\n\r\nok",
    "CR in the reason": b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok",
    "folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "head too large": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    "head without end": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    "unasked upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "interim without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50,
    "HTTP/0.9": b"<html>\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 Odd\r\n\r\n",
}


@pytest.mark.parametrize("answer", BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_an_answer_that_is_none_is_502(world: World, key: str, answer: bytes) -> None:
    path = "/echo/bad-head"
    world.upstream.behaviours[path] = then_close(answer)
    with world.raw() as client:
        client.send(request(path, key) + request("/echo/after", key))
        response = client.response()
        assert (response.status, response.json["code"]) == (502, "bad_gateway")
        assert client.response().json["target"] == "/echo/after"
    assert world.record(response.header("x-request-id")).status_code == 502


BAD_BODIES = {
    "shorter than its length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
    "last chunk missing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    "chunk too short": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort",
    "chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nxyz\r\n",
    "chunk too long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nshort\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_cut_short_is_never_made_whole(world: World, key: str, name: str) -> None:
    path = f"/echo/bad-body/{name.replace(' ', '-')}"
    head, _, body = BAD_BODIES[name].partition(b"\r\n\r\n")

    async def in_two(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await plain(head + b"\r\n\r\n")(seen, reader, writer)
        await asyncio.wait_for(begun.wait(), 20)
        writer.write(body)
        writer.close()

    begun = asyncio.Event()
    world.upstream.behaviours[path] = in_two
    with world.raw() as client:
        client.send(request(path, key))
        assert client.head().status == 200
        world.upstream.call(begun.set)
        with suppress(ConnectionError):
            client.skip(1 << 20)
        assert client.closed()
    assert [record.status_code for record in world.settled(path)] == [200]


@pytest.mark.parametrize("name", ["chunk of no size", "chunk too long"])
def test_an_answer_that_is_malformed_before_anything_left_is_a_502(world: World, key: str, name: str) -> None:
    path = f"/echo/bad-start/{name.replace(' ', '-')}"
    world.upstream.behaviours[path] = then_close(BAD_BODIES[name])
    with world.raw() as client:
        client.send(request(path, key) + request("/echo/after", key))
        assert [client.response().status for _ in range(2)] == [502, 200]
    assert [record.status_code for record in world.settled(path)] == [502]


def test_bytes_after_an_answer_are_nobodys(world: World, key: str) -> None:
    world.upstream.behaviours["/echo/more"] = plain(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    with world.raw() as client:
        client.send(request("/echo/more", key) + request("/echo/x", key) + request("/echo/y", key))
        assert client.response().body == b"ok"
        assert [client.response().json["target"] for _ in range(2)] == ["/echo/x", "/echo/y"]


@pytest.mark.parametrize(
    ("method", "body", "tries"), [("GET", b"", 2), ("DELETE", b"", 2), ("POST", b"", 1), ("PUT", b"x", 1)]
)
def test_only_what_may_be_repeated_is(world: World, key: str, method: str, body: bytes, tries: int) -> None:
    path = f"/echo/die/{method}"
    world.upstream.behaviours[path] = die
    assert world.get("/echo/x", key).status == 200
    response = world.get(path, key, method, body)
    assert response.status == 502
    assert len(world.upstream.of(path)) == tries
    assert len(world.settled(path)) == 1


def test_an_empty_body_in_chunks_is_not_repeated(world: World, key: str) -> None:
    world.upstream.behaviours["/echo/die/chunked"] = die
    assert world.get("/echo/x", key).status == 200
    with world.raw() as client:
        client.send(request("/echo/die/chunked", key, "POST", Transfer_Encoding="chunked") + b"0\r\n\r\n")
        assert client.response().status == 502
    assert len(world.upstream.of("/echo/die/chunked")) == 1


def test_more_clients_than_may_be_are_told_so(make: Make) -> None:
    world = make(connections_max="3")
    world.ready()
    key = world.key()
    world.start().until_ready()
    clients = [Raw(world.port) for _ in range(3)]
    for client in clients:
        client.send(request("/echo/x", key))
        assert client.response().status == 200
    with world.raw() as fourth:
        assert (fourth.response().status, fourth.closed()) == (503, True)
    clients.pop().socket.close()
    eventually_sync(lambda: world.get("/echo/x", key).status == 200)


def test_a_connection_that_died_meanwhile_is_replaced(make: Make) -> None:
    """The upstream restarts between two requests: the client does not notice."""
    own = Upstream()
    own.start()
    world = make()
    world.routes += f'[routes.own]\nprefix = "/own"\nupstream = "{own.origin}"\n'
    world.ready()
    key = world.key()
    world.start().until_ready()
    assert world.get("/own/1", key).status == 200
    own.stop()
    assert world.get("/own/2", key).status == 502
    own.start()
    assert world.get("/own/3", key).status == 200
    own.stop()


def test_more_requests_than_connections_wait_their_turn(make: Make) -> None:
    world = make(upstream_connections="2")
    world.ready()
    key = world.key()
    world.start().until_ready()

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.body = await read_body(seen, reader)
        await asyncio.wait_for(go_on.wait(), 20)
        writer.write(OK)

    go_on = asyncio.Event()
    world.upstream.behaviours["/echo/slow"] = slow
    clients = [Raw(world.port) for _ in range(6)]
    before = len(world.upstream.of("/echo/slow"))
    for client in clients:
        client.send(request("/echo/slow", key))
    eventually_sync(lambda: world.metric("keyledger_edge_in_flight") == 6)
    eventually_sync(lambda: len(world.upstream.of("/echo/slow")) - before == 2)
    clients.pop().socket.close()
    world.upstream.call(go_on.set)
    assert [client.response().status for client in clients] == [200] * 5
    eventually_sync(lambda: sorted(r.status_code for r in world.settled("/echo/slow")) == [200] * 5 + [499])


# Clients that go away


def test_a_client_that_goes_before_the_answer_is_counted_as_499(world: World, key: str) -> None:
    ended = asyncio.Event()

    async def wait(_seen: Seen, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    world.upstream.behaviours["/echo/gone"] = wait
    with world.raw() as client:
        client.send(request("/echo/gone", key))
        eventually_sync(lambda: world.upstream.of("/echo/gone"))
    (record,) = eventually_sync(lambda: world.settled("/echo/gone"))
    assert (record.status_code, record.decision) == (499, "allowed")
    eventually_sync(ended.is_set)


def test_a_client_that_goes_in_its_body_is_counted_as_499(world: World, key: str) -> None:
    with world.raw() as client:
        client.send(request("/echo/half", key, "POST", Content_Length="10") + b"abc")
    (record,) = eventually_sync(lambda: world.settled("/echo/half"))
    assert record.status_code == 499


def test_a_client_that_goes_in_the_answer_is_counted_once(world: World, key: str) -> None:
    async def endless(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"5\r\nagain\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    world.upstream.behaviours["/echo/endless"] = endless
    with world.raw() as client:
        client.send(request("/echo/endless", key))
        client.head()
        client.exactly(20)
    eventually_sync(lambda: world.metric("keyledger_edge_in_flight") == 0)
    assert [record.status_code for record in world.settled("/echo/endless")] == [200]


def test_a_stream_ends_within_a_second_of_its_keys_revocation(world: World) -> None:
    secret = new_secret("test")
    world.state(900, secret, 1)

    async def endless(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"5\r\nagain\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    world.upstream.behaviours["/echo/stream"] = endless
    with world.raw() as client:
        client.send(request("/echo/stream", secret.text))
        client.head()
        client.exactly(200)
        world.state(900, secret, 2, status="revoked")
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            client.skip(1 << 40)
        assert time.monotonic() - started < 2
    assert [record.status_code for record in world.settled("/echo/stream")] == [200]


# The log


def notes(world: World) -> list[Note]:
    """All notes of all logs."""
    found: list[Note] = []
    for log in logs(world.data / "logs"):
        position = log.start()
        while True:
            items, following = log.scan(position)
            found += [item for item in items if isinstance(item, Note)]
            if following == position:
                break
            position = following
    return found


def test_a_request_that_takes_long_is_noted_before_its_record(world: World) -> None:
    secret = world.key(Limits(minute=5, hour=10, day=20))
    go_on = asyncio.Event()

    async def wait(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(go_on.wait(), 20)
        await plain(OK)(seen, reader, writer)

    world.upstream.behaviours["/echo/long"] = wait
    before = len(notes(world))
    with world.raw() as client:
        client.send(request("/echo/long", secret))
        sent = clock.boot_ns()
        (note,) = eventually_sync(lambda: notes(world)[before:])
        assert not world.settled("/echo/long")
        assert abs(note.admitted_ns - sent) < 2 * clock.SECOND
        world.upstream.call(go_on.set)
        assert client.response().status == 200
    (record,) = world.settled("/echo/long")
    assert record.noted
    assert (record.key_id, record.admitted_ns) == note


def test_no_answer_without_a_record(make: Make) -> None:
    """No file may grow: what can't be recorded is not answered; afterwards all goes on, and each answer seen has its row."""
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    seen = [world.get(f"/echo/disk/{number}", key) for number in range(5)]
    resource.prlimit(world.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    refused = [world.get("/echo/disk/full", key) for _ in range(5)]
    assert {response.status for response in refused} == {503}
    assert {response.header("retry-after") for response in refused} == {"2"}
    assert world.metric("keyledger_edge_log_failures_total") >= 1
    assert not world.is_ready_now()
    resource.prlimit(world.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    eventually_sync(lambda: world.get("/echo/disk/probe", key).status == 200)
    world.until_ready()
    seen += [world.get(f"/echo/disk/{number}", key) for number in range(5, 10)]
    counted = [r.request_id for r in world.records() if r.endpoint != "/echo/disk/probe"]
    assert sorted(counted) == sorted(str(response.header("x-request-id")) for response in seen)


def test_the_limits_survive_a_kill(make: Make) -> None:
    world = make()
    world.ready()
    secret = world.key(Limits(minute=5, hour=10, day=100))
    world.start().until_ready()
    world.upstream.behaviours["/echo/open"] = hang
    with world.raw() as client:
        client.send(request("/echo/open", secret))
        eventually_sync(lambda: notes(world))
        assert [world.get("/echo/x", secret).status for _ in range(3)] == [200] * 3
        world.signal(signal.SIGKILL)
        world.wait()
    world.start().until_ready()
    assert [world.get("/echo/x", secret).status for _ in range(2)] == [200, 429]


def test_whatever_kills_it_each_answer_that_was_seen_is_counted_once(make: Make) -> None:
    world = make()
    world.ready()
    key = world.key()
    world.start().until_ready()
    seen: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with suppress(OSError), world.raw() as client:
                client.socket.settimeout(5)
                while not over.is_set():
                    # Several at once: a kill then falls between the rows and the answers of one turn.
                    client.send(request("/echo/kill", key) * 20)
                    for _ in range(20):
                        response = client.head()
                        client.skip(int(response.header("content-length") or 0))
                        if response.status == 200:
                            seen.append(response.header("x-request-id") or "")

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    for _ in range(4):
        had = len(seen)
        eventually_sync(lambda had=had: len(seen) > had + 200)
        world.signal(signal.SIGKILL)
        world.wait()
        world.start()
    had = len(seen)
    eventually_sync(lambda: len(seen) > had + 200)
    over.set()
    for client in clients:
        client.join(20)
    counted = Counter(record.request_id for record in world.records())
    assert len(set(seen)) == len(seen)
    assert {counted[request_id] for request_id in seen} == {1}
    assert set(counted.values()) == {1}
    assert len(list((world.data / "logs").iterdir())) >= 5


# The replica


def test_before_the_replica_is_ready_nobody_is_judged(make: Make) -> None:
    world = make()
    key = world.key()
    world.start()
    eventually_sync(lambda: "replica" in world.internal_any("/readyz"))
    response = eventually_sync(lambda: world.get("/echo/x", key))
    assert (response.status, response.json["code"], response.header("retry-after")) == (503, "not_ready", "2")
    assert not world.is_ready_now()
    assert world.get("/echo/x").status == 401
    world.ready()
    eventually_sync(lambda: world.get("/echo/x", key).status == 200)
    world.until_ready()
    assert [record.status_code for record in world.records()] == [200]


def test_a_stale_replica_serves_the_keys_it_knows(make: Make) -> None:
    world = make(stale_seconds="0.5")
    world.ready()
    key = world.key()
    world.start().until_ready()
    unknown = new_secret("test").text
    world.beat()
    assert world.get("/echo/x", unknown).status == 401
    assert within(3, lambda: world.get("/echo/x", unknown).status == 503) > 0.1
    assert world.get("/echo/x", key).status == 200
    assert world.get("/echo/x", key[:-1]).status == 401
    world.beat()
    assert world.get("/echo/x", unknown).status == 401


def test_strict_mode_refuses_all_after_a_while(make: Make) -> None:
    world = make(mode="strict", stale_seconds="0.3", strict_seconds="1")
    world.ready()
    key = world.key()
    world.start()

    def ready_with_a_beat() -> bool:
        # A start can take longer than a heartbeat is good for.
        world.beat()
        return world.is_ready_now()

    eventually_sync(ready_with_a_beat)
    world.beat()
    assert world.get("/echo/x", key).status == 200
    assert world.is_ready_now()
    within(3, lambda: world.get("/echo/x", key).status == 503)
    assert not world.is_ready_now()
    world.beat()
    assert world.get("/echo/x", key).status == 200
    assert world.is_ready_now()


def test_a_request_whose_connection_ends_before_it_is_sent_goes_by_another(
    world: World, upstream: Upstream, key: str
) -> None:
    kept: list[asyncio.StreamWriter] = []

    async def keep(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await plain(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(seen, reader, writer)
        kept.append(writer)

    def pass_by() -> None:
        passed = threading.Event()
        upstream.call(passed.set)
        assert passed.wait(10)

    upstream.behaviours["/echo/keep"] = keep
    with world.raw() as client:
        client.send(request("/echo/keep", key))
        assert client.response().status == 200
        # Both in one turn of the edge's event loop: first the request, which takes the idle connection, then its end.
        world.signal(signal.SIGSTOP)
        # The signal is only on its way when `kill` returns.
        eventually_sync(lambda: "State:\tT" in Path(f"/proc/{world.pid}/status").read_text())
        client.send(request("/echo/unsent", key, "POST", b"abc"))
        upstream.call(kept[0].close)
        pass_by()
        pass_by()
        world.signal(signal.SIGCONT)
        assert client.response("POST").status == 200
    (seen,) = upstream.of("/echo/unsent")
    assert seen.body == b"abc"
