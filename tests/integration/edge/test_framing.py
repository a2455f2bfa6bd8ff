"""Bytes on the wire: what is ambiguous reaches no upstream, and no request is ever taken for part of another."""

from __future__ import annotations

import itertools
import select
import socket
import time

import pytest

from tests.integration.edge.world import Raw, World, request
from tests.unit.edge.http.test_body import BROKEN
from tests.unit.edge.http.test_head import REFUSED
from tests.unit.edge.http.test_paths import AMBIGUOUS

_numbers = itertools.count()


def unique() -> str:
    return f"/echo/framing/{next(_numbers)}"


def with_path(data: bytes, path: str, key: str) -> bytes:
    """The request of the table, but below a path of our own, with a key, and with another request behind it."""
    line, _, rest = data.partition(b" ")
    target, space, after = rest.partition(b" ")
    if not target.startswith(b"/") or not space:
        return data
    head, end, body = after.partition(b"\r\n\r\n")
    keyed = b"%b\r\nX-API-Key: %b" % (head, key.encode())
    return line + b" " + path.encode() + target + space + keyed + end + body + request(path + "/smuggled", key)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_ambiguous_heads_reach_nobody(world: World, key: str, data: bytes) -> None:
    path = unique()
    with world.raw() as client:
        client.send(with_path(data, path, key))
        answer = client.response()
        assert answer.status in {400, 417, 501}
        assert answer.header("connection") == "close"
        assert answer.header("content-type") == "application/problem+json"
        assert answer.json["request_id"] == answer.header("x-request-id")
        assert client.closed()
    assert not [seen for seen in world.upstream.seen if seen.target.startswith(path)]
    assert not [record for record in world.records() if record.endpoint.startswith(path)]


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_ambiguous_paths_reach_nobody(world: World, key: str, target: str) -> None:
    seen = len(world.upstream.seen)
    with world.raw() as client:
        client.send(request("/echo" + target if target.startswith("/") else target, key))
        answer = client.response()
        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert client.closed()
    assert len(world.upstream.seen) == seen


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_chunks_end_the_request_and_the_connection(world: World, key: str, data: bytes) -> None:
    path = unique()
    with world.raw() as client:
        client.send(request(path, key, "POST", Transfer_Encoding="chunked") + data + request(path + "/smuggled", key))
        answer = client.response("POST")
        assert answer.status in {400, 431}
        assert answer.header("connection") == "close"
        assert client.closed()
    record = world.record(answer.header("x-request-id"))
    assert (record.status_code, record.decision, record.endpoint) == (answer.status, "allowed", path)
    assert not world.upstream.of(path)
    assert not world.upstream.of(path + "/smuggled")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (b"GET /" + b"a" * 20000, 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 33000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 40000, 431),
    ],
)
@pytest.mark.parametrize("piece", [1_000_000, 97])
def test_heads_have_limits_however_they_come(world: World, head: bytes, status: int, piece: int) -> None:
    with world.raw() as client:
        try:
            for start in range(0, len(head), piece):
                client.send(head[start : start + piece])
        except ConnectionError:
            pass
        answer = client.response()
        assert answer.status == status
        assert answer.header("connection") == "close"


def test_a_request_may_come_byte_by_byte(world: World, key: str) -> None:
    path = unique()
    data = request(path, key, "POST", Transfer_Encoding="chunked") + b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"
    with world.raw() as client:
        for position in range(len(data)):
            client.send(data[position : position + 1])
        assert client.response("POST").status == 200
    (seen,) = world.upstream.of(path)
    assert seen.body == b"abcde"


def test_requests_in_a_row_are_answered_in_order(world: World, key: str) -> None:
    paths = [unique() for _ in range(200)]
    with world.raw() as client:
        client.send(b"".join(request(path, key, "POST", path.encode()) for path in paths))
        assert [client.response("POST").json["target"] for _ in paths] == paths
    for path in paths:
        (seen,) = world.upstream.of(path)
        assert seen.body == path.encode()
        assert len(world.settled(path)) == 1


def test_what_follows_an_answer_of_the_edges_own_is_another_request(world: World, key: str) -> None:
    path = unique()
    smuggled = request(path + "/inner", key)
    with world.raw() as client:
        client.send(request("/unknown", key, "POST", smuggled) + request(path, key))
        assert client.response("POST").status == 404
        assert client.response().json["target"] == path
    assert not world.upstream.of(path + "/inner")


def test_a_body_of_a_refused_request_is_not_a_request(world: World, key: str) -> None:
    path = unique()
    with world.raw() as client:
        client.send(request("/echo/x", None, "POST", request(path, key)) + request(path + "/after", key))
        assert client.response("POST").status == 401
        assert client.response().status == 200
    assert not world.upstream.of(path)
    assert world.upstream.of(path + "/after")


@pytest.mark.parametrize("line", ["A: b", "Content-Length: 0"])
def test_a_get_has_no_body(world: World, key: str, line: str) -> None:
    first, second = unique(), unique()
    with world.raw() as client:
        client.send(request(first, key)[:-2] + f"{line}\r\n\r\n".encode() + request(second, key))
        assert [client.response().json["target"] for _ in range(2)] == [first, second]


def test_an_absolute_targets_authority_replaces_host(world: World, key: str) -> None:
    path = unique()
    answer = world.get(f"http://other.test:81{path}?a=b", key)
    assert answer.json["target"] == f"{path}?a=b"
    (seen,) = world.upstream.of(path)
    assert seen.values("x-forwarded-host") == ["other.test:81"]
    assert seen.values("host") == [f"127.0.0.1:{world.upstream.port}"]
    assert world.record(answer.header("x-request-id")).endpoint == path


def test_the_server_as_a_whole_may_be_asked_for_its_options(world: World) -> None:
    with world.raw() as client:
        for target in ("*", "http://edge.test"):
            client.send(request(target, None, "OPTIONS"))
            answer = client.response()
            assert (answer.status, answer.header("content-length")) == (200, "0")
            assert answer.header("allow") == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_empty_lines_before_a_request_are_ignored(world: World, key: str, piece: int) -> None:
    first, second = unique(), unique()
    data = b"\r\n" + request(first, key, "POST", b"abc") + b"\r\n\r\n" + request(second, key)
    with world.raw() as client:
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
        assert [client.response("POST").json["target"], client.response().json["target"]] == [first, second]


def test_http_1_0_gets_one_answer_until_the_end(world: World, key: str) -> None:
    path = unique()
    with world.raw() as client:
        client.send(f"GET {path} HTTP/1.0\r\nX-API-Key: {key}\r\n\r\n".encode() + request(path + "/2", key))
        answer = client.response()
        assert answer.json["target"] == path
        assert answer.header("connection") == "close"
        assert client.closed()
    assert not world.upstream.of(path + "/2")


def test_close_is_close(world: World, key: str) -> None:
    with world.raw() as client:
        client.send(request(unique(), key, Connection="close"))
        assert client.response().header("connection") == "close"
        assert client.closed()


def test_slow_heads_and_idle_connections_end(make) -> None:  # type: ignore[no-untyped-def]
    world = make(head_seconds="0.5", idle_seconds="1", body_idle_seconds="0.7")
    world.ready()
    key = world.key()
    world.start().until_ready()
    silent, slow, idle, body = (Raw(world.port) for _ in range(4))
    slow.send(b"GET / HTTP/1.1\r\nHost")
    idle.send(request("/echo/x", key))
    assert idle.response().status == 200
    body.send(request("/echo/x", key, "POST", Content_Length="10") + b"abc")
    assert slow.response().status == 408
    assert slow.closed()
    assert silent.closed()
    assert idle.closed()
    answer = body.response()
    assert (answer.status, answer.header("connection")) == (408, "close")
    assert body.closed()
    assert world.record(answer.header("x-request-id")).status_code == 408


def test_a_client_that_takes_no_answers_is_not_read_on(world: World) -> None:
    head = b"GET /.well-known/keyledger/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    with socket.create_connection(("127.0.0.1", world.port)) as client:
        client.setblocking(False)
        sent, quiet_since = 0, time.monotonic()
        while time.monotonic() - quiet_since < 2 and sent < 64 * 1024 * 1024:
            try:
                sent += client.send(head)
                quiet_since = time.monotonic()
            except BlockingIOError:
                select.select([], [client], [], 0.1)
        assert sent < 64 * 1024 * 1024
        client.setblocking(True)
        client.settimeout(20)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    with Raw(world.port) as other:
        other.send(request("/.well-known/keyledger/jwks.json"))
        assert other.response().status == 200
