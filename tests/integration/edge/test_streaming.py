"""Bodies stream both ways, as fast as the other side takes them and no faster."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.edge.upstream import Seen, Upstream, plain, then_close
from tests.integration.edge.world import Raw, World, request
from tests.support.eventually import eventually_sync

MIB = 1024 * 1024


def resident(world: World) -> int:
    """Bytes of memory that the serving process has."""
    return int(Path(f"/proc/{world.pid}/statm").read_text().split()[1]) * 4096


@pytest.fixture(scope="module")
def large(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An edge that takes large bodies."""
    settings = {"KEYLEDGER_EDGE_BODY_MAX": str(1024 * MIB)}
    routes = f'[routes.echo]\nprefix = "/echo"\nupstream = "{upstream.origin}"\n'
    made = World(tmp_path_factory.mktemp("large"), upstream, routes, settings)
    made.ready()
    try:
        yield made.start().until_ready()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def key(large: World) -> str:
    return large.key()


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 300_000, 20 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_arrive_whole_both_ways(large: World, key: str, size: int, chunked: bool) -> None:
    data, path = data_of(size), f"/echo/whole/{size}/{chunked}"

    async def mirror(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not chunked:
            await plain(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data)(seen, reader, writer)
            return
        writer_body = [
            b"%x;e=f\r\n%b\r\n" % (len(data[i : i + 70_000]), data[i : i + 70_000]) for i in range(0, size, 70_000)
        ]
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await plain(head + b"".join(writer_body) + b"0\r\nTrailing: x\r\n\r\n")(seen, reader, writer)

    large.upstream.behaviours[path] = mirror
    with large.raw() as client:
        if chunked:
            client.send(request(path, key, "POST", Transfer_Encoding="chunked"))
            for start in range(0, size, 100_000):
                piece = data[start : start + 100_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        else:
            client.send(request(path, key, "POST", data))
        response = client.response("POST")
        assert response.whole
        assert hashlib.sha256(response.body).digest() == hashlib.sha256(data).digest()
        (seen,) = large.upstream.of(path)
        assert seen.body == data
        client.send(request("/echo/next", key))
        assert client.response().status == 200
    assert len(large.settled(path)) == 1


def test_a_body_reaches_the_upstream_while_it_is_sent(large: World, key: str) -> None:
    first = threading.Event()

    async def half(_seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        first.set()
        await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    large.upstream.behaviours["/echo/half"] = half
    with large.raw() as client:
        client.send(request("/echo/half", key, "POST", Content_Length="10") + b"hello")
        assert first.wait(10)
        client.send(b"world")
        assert client.response("POST").status == 200


def test_an_answer_reaches_the_client_while_it_is_made(large: World, key: str) -> None:
    more = asyncio.Event()

    async def drip(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
        )
        await writer.drain()
        await asyncio.wait_for(more.wait(), 10)
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")

    large.upstream.behaviours["/echo/drip"] = drip
    with large.raw() as client:
        client.send(request("/echo/drip", key))
        head = client.head()
        assert client.exactly(10) == b"5\r\nfirst\r\n"
        assert len(large.settled("/echo/drip")) == 1
        large.upstream.call(more.set)
        assert client.exactly(16) == b"6\r\nsecond\r\n0\r\n\r\n"
    assert large.record(head.header("x-request-id")).status_code == 200


def test_a_client_that_does_not_read_holds_its_upstream_back(large: World, key: str) -> None:
    sent = 0

    async def flood(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * MIB))
        for _ in range(200):
            writer.write(bytes(MIB))
            await writer.drain()
            sent += MIB

    large.upstream.behaviours["/echo/flood"] = flood
    before = resident(large)
    with large.raw() as client:
        client.send(request("/echo/flood", key))
        client.head()
        stalled = _standstill(lambda: sent)
        assert stalled < 100 * MIB
        assert resident(large) - before < 30 * MIB
        assert large.get("/echo/meanwhile", key).status == 200
        client.skip(200 * MIB)


def test_an_upstream_that_does_not_read_holds_its_client_back(large: World, key: str) -> None:
    go_on = asyncio.Event()

    async def wait(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(go_on.wait(), 30)
        await plain(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(seen, reader, writer)

    large.upstream.behaviours["/echo/wait"] = wait
    before = resident(large)
    sent = 0
    with large.raw() as client:

        def send() -> None:
            nonlocal sent
            for _ in range(100):
                client.send(bytes(MIB))
                sent += MIB

        client.send(request("/echo/wait", key, "POST", Content_Length=str(100 * MIB)))
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert _standstill(lambda: sent) < 50 * MIB
        assert resident(large) - before < 30 * MIB
        large.upstream.call(go_on.set)
        assert client.response("POST").status == 200
        thread.join(10)
    (seen,) = large.upstream.of("/echo/wait")
    assert len(seen.body) == 100 * MIB


def _standstill(value: Callable[[], int]) -> int:
    """The value once it has stood still for a while."""
    last, since = -1, time.monotonic()

    def still() -> bool:
        nonlocal last, since
        if value() != last:
            last, since = value(), time.monotonic()
        return last > 0 and time.monotonic() - since > 0.5

    eventually_sync(still)
    return last


# Messages without bodies, and of unknown length


def test_head_has_the_headers_of_get_and_no_body(large: World, key: str) -> None:
    with large.raw() as client:
        client.send(request("/echo/x", key, "HEAD") + request("/echo/x", key))
        assert int(client.response("HEAD").header("content-length") or 0) > 100
        assert client.response().status == 200


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nETag: x\r\n\r\n", "7"),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    ],
)
def test_answers_that_have_no_body(large: World, key: str, answer: bytes, length: str | None) -> None:
    large.upstream.behaviours["/echo/empty"] = plain(answer)
    with large.raw() as client:
        client.send(request("/echo/empty", key) + request("/echo/x", key))
        response = client.response()
        assert response.header("content-length") == length
        assert response.header("transfer-encoding") is None
        assert client.response().json["target"] == "/echo/x"


def test_interim_answers_are_dropped(large: World, key: str) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    large.upstream.behaviours["/echo/interim"] = plain(interim + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with large.raw() as client:
        client.send(request("/echo/interim", key))
        head = client.head()
        assert (head.status, head.header("link")) == (200, None)
    assert len(large.settled("/echo/interim")) == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_may_last_until_its_end(large: World, key: str, version: str) -> None:
    large.upstream.behaviours["/echo/until"] = then_close(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    with large.raw() as client:
        client.send(f"GET /echo/until HTTP/{version}\r\nHost: h\r\nX-API-Key: {key}\r\n\r\n".encode())
        response = client.response()
        assert response.body == b"all of it"
        assert response.header("transfer-encoding") == ("chunked" if version == "1.1" else None)
        assert response.header("connection") == ("close" if version == "1.0" else None)


def test_expect_continue(large: World, key: str) -> None:
    with large.raw() as client:
        client.send(request("/echo/expect", key, "POST", Content_Length="3", Expect="100-continue"))
        assert client.head().status == 100
        client.send(b"abc")
        assert client.response("POST").json["length"] == 3
    (seen,) = large.upstream.of("/echo/expect")
    assert not seen.values("expect")


def test_who_is_refused_is_not_asked_for_the_body(large: World) -> None:
    with large.raw() as client:
        client.send(request("/echo/expect", None, "POST", Content_Length="3", Expect="100-continue"))
        response = client.head()
        assert (response.status, response.header("connection")) == (401, "close")


# Bodies that are too large


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413), (3_000_000, 413)])
def test_a_routes_body_cap(world: World, size: int, status: int, chunked: bool) -> None:
    secret, path = world.key(), f"/small/{size}/{chunked}"
    with world.raw() as client:
        if chunked:
            client.send(request(path, secret, "POST", Transfer_Encoding="chunked"))
        else:
            client.send(request(path, secret, "POST", Content_Length=str(size)))
        try:
            for start in range(0, size, 500):
                piece = bytes(min(500, size - start))
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            client.send(b"0\r\n\r\n" if chunked else b"")
        except ConnectionError:
            assert status == 413
        response = client.response("POST")
    assert response.status == status
    if status == 413:
        assert response.json["code"] == "too_large"
    assert [record.status_code for record in world.settled(path)] == [status]


def test_an_early_answer_ends_a_long_request(large: World, key: str) -> None:
    async def early(_seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")

    large.upstream.behaviours["/echo/early"] = early
    with Raw(large.port) as client:
        client.send(request("/echo/early", key, "POST", Content_Length=str(50 * MIB)) + bytes(1000))
        response = client.response("POST")
        assert (response.status, response.body, response.header("connection")) == (403, b"no", "close")
    assert [record.status_code for record in large.settled("/echo/early")] == [403]
