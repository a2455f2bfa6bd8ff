"""Requests and answers in every awkward order: each is answered once or cut, counted once, and nobody gets another's answer."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from services.edge.domain import Limits
from tests.unit.edge.serving.stage import HIGH_WATER, Stage, Wire, answer, ask

Make = Callable[..., Stage]
KB = 1024


def idle(stage: Stage, key: str) -> tuple[Wire, Wire]:
    """A client, and a connection to the upstream that served it once."""
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/first", key)))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(answer(b"first")))
    stage.turns()
    assert stage.statuses(client) == [200]
    client.sent = upstream.sent = b""
    return client, upstream


def test_a_request_and_its_answer(stage: Stage) -> None:
    client, upstream = idle(stage, stage.key())
    stage.turn(lambda: client.receive(ask("/echo/second", stage.key())))
    stage.turns()
    assert stage.asked(upstream) == ["/echo/second"]
    stage.turn(lambda: upstream.receive(answer(b"second")))
    stage.turns()
    assert client.sent.endswith(b"\r\n\r\nsecond")
    assert stage.recorded() == [("/echo/first", 200), ("/echo/second", 200)]
    assert stage.metrics.in_flight == 0


# What comes on a connection that asked for nothing


@pytest.mark.parametrize("unasked", [answer(b"poison", 408), b"x"])
def test_an_answer_to_nothing_is_nobodys(stage: Stage, unasked: bytes) -> None:
    key = stage.key()
    first, upstream = idle(stage, key)
    second = stage.client()
    stage.turn(lambda: first.receive(ask("/echo/a", key)), lambda: upstream.receive(unasked))
    stage.turn(lambda: second.receive(ask("/echo/b", key)))
    for _ in range(2):
        made = stage.accept()
        (path,) = stage.asked(made)
        stage.turn(lambda made=made, path=path: made.receive(answer(path.encode())))
        stage.turns()
    assert upstream.lost
    assert (first.sent[-7:], second.sent[-7:]) == (b"/echo/a", b"/echo/b")
    assert sorted(stage.recorded()[1:]) == [("/echo/a", 200), ("/echo/b", 200)]


# Connections to upstreams that fail in the making


@pytest.mark.parametrize(
    "error", [UnicodeError("label empty or too long"), OSError("refused"), ssl.SSLError("bad"), ValueError("odd")]
)
def test_whatever_hinders_a_connection_is_a_502_and_frees_its_place(make: Make, error: Exception) -> None:
    stage = make(upstream_connections=1)
    key, client = stage.key(), stage.client()
    for _ in range(2):
        stage.turn(lambda: client.receive(ask("/echo/x", key)))
        stage.turn()
        stage.turn(lambda: stage.loop.dials[0].fail(error))
        stage.turns()
    assert stage.statuses(client) == [502, 502]


def test_a_connection_that_is_lost_before_its_use(make: Make) -> None:
    stage = make(upstream_connections=1)
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key)))
    stage.turn()

    def accept_and_lose() -> None:
        stage.loop.dials[0].accept().reset()

    stage.turn(accept_and_lose)
    stage.turns()
    assert stage.statuses(client) == [502]
    stage.turn(lambda: client.receive(ask("/echo/y", key)))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(answer()))
    stage.turns()
    assert stage.statuses(client) == [502, 200]


def test_a_connection_that_comes_too_late_frees_one_place_only(make: Make) -> None:
    """The deadline passes in the turn in which the connection stands: one attempt, one place."""
    stage = make(upstream_connections=2)
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key)))
    stage.turn()
    dial = stage.loop.dials[0]
    stage.loop.now += stage.settings.connect_seconds + 1
    stage.turn(dial.accept)
    stage.turns()
    clients = [stage.client() for _ in range(4)]
    for each in clients:
        stage.turn(lambda each=each: each.receive(ask("/echo/y", key)))
    stage.turns()
    assert len(stage.loop.dials) <= 2


def test_who_waits_no_more_is_forgotten(make: Make) -> None:
    """An upstream whose connections all stream for ever must not gather those who waited for one in vain."""
    stage = make(upstream_connections=1)
    key = stage.key()
    streaming = stage.client()
    stage.turn(lambda: streaming.receive(ask("/echo/stream", key)))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
    waiting = [stage.client() for _ in range(3)]
    for each in waiting:
        stage.turn(lambda each=each: each.receive(ask("/echo/x", key, "POST", bytes(10 * KB))))
    stage.turn(waiting[0].reset)
    stage.wait(31)
    assert [stage.statuses(each) for each in waiting[1:]] == [[504], [504]]
    assert stage.pools["http://echo"].waiting == 0


# Repeating


def test_what_an_upstream_may_have_begun_is_not_sent_again(stage: Stage) -> None:
    """Its head was sent, its body not: to the upstream the request has begun."""
    key = stage.key()
    client, upstream = idle(stage, key)
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", Content_Length=3)))
    stage.turns()
    assert stage.asked(upstream) == ["/echo/x"]
    stage.turn(upstream.reset)
    stage.turns()
    assert not stage.loop.dials
    assert stage.statuses(client) == [502]


def test_what_was_not_sent_at_all_goes_by_another(stage: Stage) -> None:
    key = stage.key()
    client, upstream = idle(stage, key)
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", b"abc")), upstream.reset)
    other = stage.accept()
    assert other.sent.endswith(b"\r\n\r\nabc")
    stage.turn(lambda: other.receive(answer()))
    stage.turns()
    assert stage.statuses(client) == [200]


def test_a_connection_that_still_has_to_send_serves_nobody_else(stage: Stage) -> None:
    key = stage.key()
    client, upstream = idle(stage, key)
    upstream.stick()
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", bytes(200 * KB))))
    stage.turns()
    stage.turn(lambda: upstream.receive(answer(status=413)))
    stage.turns()
    assert stage.statuses(client) == [413]
    assert upstream.lost


# Answers that turn out to be none


BAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"


@pytest.mark.parametrize("path", ["/echo/x", "/open/x"])
@pytest.mark.parametrize("split", [len(BAD), BAD.index(b"xyz")])
def test_an_answer_of_which_nothing_has_left_is_a_502(stage: Stage, path: str, split: int) -> None:
    client = stage.client()
    stage.turn(lambda: client.receive(ask(path, stage.key())))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(BAD[:split]), lambda: split < len(BAD) and upstream.receive(BAD[split:]))
    stage.turns()
    if path == "/open/x" and split < len(BAD):
        # It needs no record, so its head did not wait.
        assert client.lost
        return
    assert stage.statuses(client) == [502]
    assert not client.lost
    assert stage.recorded() == ([(path, 502)] if path == "/echo/x" else [])
    assert sum(stage.metrics.requests.values()) == len(stage.recorded())


@pytest.mark.parametrize("head", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_answer_that_ends_with_its_head_in_one_turn_is_a_502(stage: Stage, head: bytes) -> None:
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", stage.key())))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n"), upstream.reset)
    stage.turns()
    assert (stage.statuses(client), client.lost) == ([502], False)
    assert stage.recorded() == [("/echo/x", 502)]


def test_an_answer_of_which_something_has_left_is_cut(stage: Stage) -> None:
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", stage.key())))
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(BAD[: BAD.index(b"xyz")]))
    stage.turns()
    stage.turn(lambda: upstream.receive(b"xyz\r\n"))
    stage.turns()
    assert (stage.statuses(client), client.lost) == ([200], True)
    assert stage.recorded() == [("/echo/x", 200)]


# Slow clients


def test_a_body_that_nobody_wants_has_a_deadline(stage: Stage) -> None:
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", None, "POST", Content_Length=120 * KB) + bytes(100 * KB)))
    stage.turns()
    assert stage.statuses(client) == [401]
    stage.wait(stage.settings.body_idle_seconds + 6)
    assert client.lost


@pytest.mark.parametrize("first", [0, 100 * KB])
def test_a_dripping_body_ends(stage: Stage, first: int) -> None:
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", Content_Length=900 * KB) + bytes(first)))
    stage.turn()
    if stage.loop.dials:
        stage.accept()
    for _ in range(70):
        stage.wait(1)
        stage.turn(lambda: client.receive(b"x"))
    assert stage.statuses(client) == [408]
    assert stage.recorded() == [("/echo/x", 408)]
    assert all(upstream.lost for upstream in stage.upstreams)


def test_a_slow_body_that_keeps_coming_is_waited_for(stage: Stage) -> None:
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", Content_Length=200 * 2 * KB)))
    upstream = stage.accept()
    for _ in range(200):
        stage.wait(1)
        stage.turn(lambda: client.receive(bytes(2 * KB)))
    stage.turns()
    stage.turn(lambda: upstream.receive(answer()))
    stage.turns()
    assert stage.statuses(client) == [200]


@pytest.mark.parametrize("first", [0, 100 * KB])
def test_dripping_bodies_do_not_keep_an_upstream_from_others(make: Make, first: int) -> None:
    stage = make(upstream_connections=4)
    slow, other = stage.key(1), stage.key(2)
    dripping = [stage.client() for _ in range(4)]
    for client in dripping:
        stage.turn(
            lambda client=client: client.receive(
                ask("/echo/slow", slow, "POST", Content_Length=900 * KB) + bytes(first)
            )
        )
        stage.turn()
        if stage.loop.dials:
            stage.accept()
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", other)))
    for _ in range(5):
        stage.wait(1)
        stage.turn(*(lambda each=each: each.receive(b"x") for each in dripping))
        if stage.loop.dials:
            upstream = stage.accept()
            if stage.asked(upstream) == ["/echo/x"]:
                stage.turn(lambda upstream=upstream: upstream.receive(answer()))
    stage.turns()
    assert stage.statuses(client) == [200]


def test_readers_that_take_nothing_do_not_keep_an_upstream_from_others(make: Make) -> None:
    stage = make(upstream_connections=2)
    slow, other = stage.key(1), stage.key(2)
    for _ in range(2):
        reader = stage.client()
        stage.turn(lambda reader=reader: reader.receive(ask("/echo/slow", slow)))
        upstream = stage.accept()
        reader.stick()
        stage.turn(lambda upstream=upstream: upstream.receive(answer(bytes(900 * KB))[: 300 * KB]))
    stage.turns()
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", other)))
    stage.wait(3)
    upstream = stage.accept()
    stage.turn(lambda: upstream.receive(answer()))
    stage.turns()
    assert stage.statuses(client) == [200]


def test_connections_that_do_nothing_give_way_when_there_are_too_many(make: Make) -> None:
    stage = make(connections_max=8)
    key = stage.key()
    for number in range(8):
        made = stage.client()
        stage.turn(lambda made=made, begun=number % 2: made.receive(b"GET / HT" * begun))
    stage.wait(5)
    client = stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key)))
    stage.turns()
    assert len(stage.loop.dials) == 1


def test_a_key_has_so_many_requests_under_way(make: Make) -> None:
    stage = make(open_requests=2)
    key, other = stage.key(1, Limits(minute=10)), stage.key(2)
    clients = [stage.client() for _ in range(4)]
    for client, asking in zip(clients, [key, key, key, other], strict=True):
        stage.turn(lambda client=client, asking=asking: client.receive(ask("/echo/x", asking)))
    stage.turns()
    assert [stage.statuses(client) for client in clients] == [[], [], [429], []]
    assert b'"code":"too_many_open"' in clients[2].sent
    assert b"\r\nRetry-After: 1\r\n" in clients[2].sent
    assert b"\r\nX-RateLimit-Remaining: 8\r\n" in clients[2].sent
    assert [record.decision for record in stage.log.records] == ["rate_limited"]
    stage.turn(clients[0].reset)
    stage.turn(lambda: clients[2].receive(ask("/echo/x", key)))
    stage.turns()
    assert stage.statuses(clients[2]) == [429]
    assert len(stage.loop.dials) == 4


# Keys that are refused meanwhile


@pytest.mark.parametrize("body", [b"", bytes(10)])
def test_a_request_under_way_ends_with_its_key(stage: Stage, body: bytes) -> None:
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", Content_Length=100) + body))
    stage.turn()
    stage.refuse(1)
    stage.wait(2)
    assert stage.statuses(client) == [401]
    assert stage.recorded() == [("/echo/x", 401)]
    assert stage.pools["http://echo"].waiting == 0


def test_the_command_that_ends_its_own_key_has_its_answer(stage: Stage) -> None:
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/api/v1/api-keys/1", key, "DELETE")))
    upstream = stage.accept()
    stage.refuse(1)
    stage.wait(3)
    stage.turn(lambda: upstream.receive(answer(b"deleted")))
    stage.turns()
    assert client.sent.endswith(b"deleted")
    assert stage.recorded() == [("/api/v1/api-keys/1", 200)]


# Memory


def test_what_waits_in_memory_is_bounded(make: Make) -> None:
    """Whoever fills it: bodies that wait for a connection, requests behind one, beginnings of heads, answers not taken."""
    stage = make(upstream_connections=1, held_max=1024 * KB, open_requests=1000)
    key = stage.key()
    clients = [stage.client() for _ in range(40)]
    kinds: list[Callable[[Wire], object]] = [
        lambda client: client.receive(ask("/echo/x", key, "POST", bytes(250 * KB))),
        lambda client: client.receive(ask("/open/x") + b"GET /echo/y HTTP/1.1\r\n" + bytes(250 * KB)),
        lambda client: client.receive(b"GET / HTTP/1.1\r\nA: " + b"b" * 30 * KB),
    ]
    for number, client in enumerate(clients):
        stage.turn(lambda client=client, act=kinds[number % 3]: act(client))
        stage.turns()
        assert stage.home.backlog.held <= 1024 * KB + 256 * KB
    assert stage.home.backlog.held > 512 * KB
    assert any(stage.statuses(client) == [503] for client in clients[:9])
    assert not any(stage.statuses(client) for client in clients[-3:])
    for client in clients:
        stage.turn(client.reset)
    stage.turns()
    assert stage.home.backlog.held == 0


def test_who_takes_no_answers_goes_first(make: Make) -> None:
    stage = make(held_max=1024 * KB)
    key = stage.key()
    readers: list[Wire] = []
    for _ in range(10):
        reader = stage.client()
        readers.append(reader)
        stage.turn(lambda reader=reader: reader.receive(ask("/echo/x", key)))
        stage.turns()
        if stage.loop.dials:
            stage.accept()
        upstream = stage.upstreams[-1]
        reader.stick()
        stage.turn(lambda upstream=upstream: upstream.receive(answer(bytes(200 * KB))))
        stage.turns()
    assert [reader.lost for reader in readers] == [True] * 5 + [False] * 5
    assert HIGH_WATER < stage.home.backlog.held <= 1024 * KB
    stage.turn(*(reader.drain for reader in readers))
    stage.turns()
    assert stage.home.backlog.held == 0


def test_a_client_that_ends_its_request_but_takes_no_answer_is_ended(stage: Stage) -> None:
    """The upstream answers before the request's end; that the body is complete takes nothing from the client's deadline."""
    key, client = stage.key(), stage.client()
    stage.turn(lambda: client.receive(ask("/echo/x", key, "POST", Content_Length=3)))
    upstream = stage.accept()
    client.stick()
    stage.turn(lambda: upstream.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
    big = HIGH_WATER + 1
    stage.turn(lambda: upstream.receive(b"%x\r\n%b\r\n" % (big, bytes(big))))
    stage.turn(lambda: client.receive(b"abc"))
    stage.wait(stage.settings.body_idle_seconds + 1)
    assert client.lost and upstream.lost
    assert not stage.gate.under_way


def test_empty_lines_give_no_time(stage: Stage) -> None:
    client = stage.client()
    stage.turn(lambda: client.receive(b"\r"))
    waited = 0.0
    while not client.lost and waited < 3 * stage.settings.head_seconds:
        stage.wait(1)
        waited += 1
        stage.turn(lambda: client.receive(b"\n\r"))
    assert client.lost
