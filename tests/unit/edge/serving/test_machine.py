"""Clients and upstreams that do anything at any time, several things in one turn, against what must hold all the same: each
request is answered once or cut, counted once, and nobody gets another's answer; nothing is leaked or held past its deadline.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typing_extensions import override

from services.edge.domain import Limits
from tests.unit.edge.serving.stage import Stage, Wire, answer, ask

KB = 1024
CONNECTIONS = 2
OPEN = 3
HELD = 512 * KB
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")
# What an upstream does when it is asked for `path`: pieces, each in an event of its own.
ANSWERS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda path: [answer(path)],
    "and closes": lambda path: [answer(path, fields=b"Connection: close\r\n")],
    "in two": lambda path: [answer(path)[:-3], answer(path)[-3:]],
    "head first": lambda path: list(answer(path).partition(b"\r\n\r\n")),
    "chunked": lambda path: [_chunked(path) + b"0\r\n\r\n"],
    "chunks": lambda path: [_chunked(path), b"0\r\n", b"\r\n"],
    "endless": lambda path: [_chunked(path)],
    "interim": lambda path: [_INTERIM + answer(path)],
    "large": lambda path: [_large(path)],
    "malformed": lambda _: [b"HTTP/1.1 200\r\nnonsense\r\n\r\n"],
    "malformed at once": lambda path: [_chunked(path) + b"xyz\r\n"],
    "malformed later": lambda path: [_chunked(path), b"xyz\r\n"],
    "too much": lambda path: [answer(path) + answer(b"poison")],
    "too much later": lambda path: [answer(path), answer(b"poison")],
}


def _chunked(path: bytes) -> bytes:
    return b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(path), path)


def _large(path: bytes) -> bytes:
    return answer(path + b"." * 200 * KB)


# How many turns are played after an event: with none, it happens in one turn with the next.
ALL_TURNS = [0, 0, 1, 6, 6, 6]
TURNS = st.sampled_from(ALL_TURNS)
PICK = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Rules say what happens next; whoever it happens to is picked from those who are there."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(
            upstream_connections=CONNECTIONS,
            connections_max=6,
            held_max=HELD,
            open_requests=OPEN,
            body_idle_seconds=20,
        )
        self.keys = [self.stage.key(1), self.stage.key(2, Limits(minute=9))]
        self.numbers = itertools.count()
        self.events: list[Callable[[], object]] = []
        self.asked: dict[Wire, list[tuple[str, str]]] = {}
        self.owed: dict[Wire, list[bytes]] = {}
        self.log_failed = False
        self.revoked = False
        self.quiet = False
        # Paths of which nothing can have left before it was clear that their answer is none.
        self.nonsense: set[str] = set()

    @initialize()
    def begin(self) -> None:
        """A connection to the upstream has served, and stands."""
        self._request(self._client(0), "GET", "", 0, 6)
        self.serve()

    # Clients

    @rule(
        pick=PICK,
        method=st.sampled_from(["GET", "GET", "HEAD", "PUT", "POST", "POST", "POST"]),
        body=st.sampled_from(
            ["", "", "", "whole", "late", "late", "large", "large", "chunked", "expected", "too large"]
        ),
        who=st.sampled_from([0, 0, 0, 1, 1, "public", "public", None]),
        turns=TURNS,
        count=st.sampled_from([1, 1, 2, 4]),
    )
    def requests(self, pick: int, method: str, body: str, who: int | str | None, turns: int, count: int) -> None:
        for each in range(count):
            self._request(self._client(pick + each), method, body, who, turns * (each == count - 1))

    def _request(self, client: Wire, method: str, body: str, who: int | str | None, turns: int) -> None:
        if self.owed[client]:
            self._then(turns, lambda: client.receive(self.owed[client].pop(0)) if self.owed[client] else None)
            return
        path = f"/{'open' if who == 'public' else 'echo'}/{next(self.numbers)}"
        key = self.keys[who] if isinstance(who, int) else None
        head, *rest = _request(path, key, method, body)
        self.asked[client].append((path, method))
        self.owed[client] = rest
        self._then(turns, lambda: client.receive(head))

    @rule(pick=PICK, turns=TURNS, what=st.sampled_from(["stick", "stick", "drain", "end", "reset", "nonsense"]))
    def client_does(self, pick: int, what: str, turns: int) -> None:
        client = self._client(pick)
        if what == "nonsense" and self.owed[client]:
            return
        if what == "nonsense":
            self.asked[client].append(("nonsense", "GET"))
            self._then(turns, lambda: client.receive(b"xyz\r\n\r\n"))
        else:
            self._then(turns, lambda: client.lost or getattr(client, what)())

    def _client(self, pick: int) -> Wire:
        there = [client for client in self.asked if not client.is_closing()]
        if pick < len(there):
            return there[pick]
        client = self.stage.client()
        self.asked[client], self.owed[client] = [], []
        return client

    # Upstreams

    @precondition(lambda self: self.stage.loop.dials)
    @rule(how=st.sampled_from(["take", "take", "take", "lose", "speak", "fail", "odd"]), turns=TURNS)
    def dialled(self, how: str, turns: int) -> None:
        def event() -> None:
            if not self.stage.loop.dials:
                return
            dial = self.stage.loop.dials[0]
            if how in ("fail", "odd"):
                dial.fail(OSError("no") if how == "fail" else UnicodeError("no"))
                return
            wire = dial.accept()
            self.stage.upstreams.append(wire)
            if how == "lose":
                wire.reset()
            elif how == "speak":
                wire.receive(answer(b"poison"))

        self._then(turns, event)

    @rule()
    def serve(self) -> None:
        """All goes well for once: who waits for the upstream is answered."""
        self._then(2, lambda: None)
        while self.stage.loop.dials:
            self.stage.accept()
        for upstream in self._upstreams():
            asked = self.stage.asked(upstream)
            if len(asked) > upstream.answered:
                upstream.answered = len(asked)
                self._then(6, lambda upstream=upstream, path=asked[-1]: upstream.receive(answer(path.encode())))

    @precondition(lambda self: self._upstreams())
    @rule(pick=PICK, how=st.sampled_from([*["whole"] * 6, *sorted(ANSWERS)]), turns=TURNS, apart=st.booleans())
    def respond(self, pick: int, how: str, turns: int, apart: bool) -> None:
        upstreams = self._upstreams()
        upstream = upstreams[pick % len(upstreams)]
        asked = self.stage.asked(upstream)
        if len(asked) == upstream.answered:
            return
        upstream.answered = len(asked)
        # What comes when the next request has been sent can't be told from its answer.
        apart = apart and how != "too much later"
        pieces = ANSWERS[how](asked[-1].encode())
        if how.startswith("malformed") and (len(pieces) == 1 or not (apart or asked[-1].startswith("/open"))):
            self.nonsense.add(asked[-1])
        for piece in pieces:
            self._then(turns * apart, lambda piece=piece: upstream.receive(piece))
        self._then(turns, lambda: None)

    @precondition(lambda self: self._upstreams())
    @rule(pick=PICK, turns=TURNS, what=st.sampled_from(["stick", "drain", "end", "reset", "speak", "speak"]))
    def upstream_does(self, pick: int, what: str, turns: int) -> None:
        upstreams = self._upstreams()
        upstream = upstreams[pick % len(upstreams)]
        if what == "speak":
            if self._has_nothing_to_say(upstream):
                self._then(
                    turns, lambda: self._has_nothing_to_say(upstream) and upstream.receive(answer(b"poison", 408))
                )
        else:
            self._then(turns, lambda: upstream.lost or getattr(upstream, what)())

    def _has_nothing_to_say(self, upstream: Wire) -> bool:
        """Whether it was asked nothing that it has not answered: what it says is nobody's, unless it waits for us to read."""
        idle = len(self.stage.asked(upstream)) == upstream.answered
        return idle and upstream.reading and not upstream.stuck

    def _upstreams(self) -> list[Wire]:
        return [upstream for upstream in self.stage.upstreams if not upstream.is_closing()]

    # Everything else

    @rule(seconds=st.sampled_from([0.25, 0.25, 1.25, 1.25, 3.0, 3.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self._then(1, lambda: None)
        self.stage.wait(seconds)
        self.stage.turns(2)
        self.quiet = True
        if self.revoked and seconds > 1:
            assert 2 not in self.stage.gate.under_way

    @rule(turns=TURNS, what=st.sampled_from(["revoke", "full", "free", "free"]))
    def meanwhile(self, what: str, turns: int) -> None:
        self.log_failed = self.log_failed or what == "full"
        if what == "revoke":
            self.revoked = True
            self._then(turns, lambda: self.stage.refuse(2))
        else:
            self._then(turns, lambda: setattr(self.stage.log, "full", what == "full"))

    def _then(self, turns: int, event: Callable[[], object]) -> None:
        self.events.append(event)
        self.quiet = turns == max(ALL_TURNS)
        if turns:
            events, self.events = self.events, []
            self.stage.turn(*events)
            self.stage.turns(turns - 1)

    # What must hold

    @invariant()
    def nobody_gets_anothers_answer(self) -> None:
        for client, asked in self.asked.items():
            for (path, method), (status, body, whole) in zip(asked, _responses(client, asked), strict=False):
                assert body != b"poison"
                if status == 200 and whole and method != "HEAD":
                    assert body.rstrip(b".") == path.encode()

    @invariant()
    def there_are_so_many_connections_at_most(self) -> None:
        alive = [upstream for upstream in self.stage.upstreams if not upstream.is_closing()]
        assert len(alive) + len(self.stage.loop.dials) <= CONNECTIONS

    @precondition(lambda self: self.quiet)
    @invariant()
    def who_waits_waits_for_somebody(self) -> None:
        stage = self.stage
        open_, waiting = (sum(getattr(pool, name) for pool in stage.pools.values()) for name in ("open", "waiting"))
        # One that has yet to send before it closes is still there.
        assert open_ <= sum(not upstream.lost for upstream in stage.upstreams) + len(stage.loop.dials)
        assert not waiting or open_ == CONNECTIONS
        assert stage.metrics.in_flight <= open_ + waiting

    @invariant()
    def bounds_are_kept(self) -> None:
        assert self.stage.home.backlog.held <= HELD
        assert all(count <= OPEN for count in self.stage.gate.under_way.values())

    @invariant()
    def each_is_counted_once_and_as_what_was_seen(self) -> None:
        recorded = dict(self.stage.recorded())
        assert len(recorded) == len(self.stage.log.records)
        for client, asked in self.asked.items():
            for (path, method), (status, _, _) in zip(asked, _responses(client, asked), strict=False):
                assert status != 500
                assert status != 200 or method == "HEAD" or path not in self.nonsense
                if path in recorded:
                    assert recorded[path] == status
                elif path.startswith("/echo"):
                    assert status in {400, 401, 408, 429, 503}

    @invariant()
    def what_may_have_been_carried_out_is_not_repeated(self) -> None:
        sent = Counter(path for upstream in self.stage.upstreams for path in self.stage.asked(upstream))
        methods = {path: method for asked in self.asked.values() for path, method in asked}
        assert all(count == 1 or (count == 2 and methods[path] != "POST") for path, count in sent.items())

    @override
    def teardown(self) -> None:
        stage = self.stage
        try:
            self._then(1, lambda: setattr(stage.log, "full", False))
            for _ in range(70):
                stage.loop.now += 5
                stage.turn(stage.sweep, *(partial(client.receive, b"x") for client in self._dripping()))
                stage.turns(6)
            self.nobody_gets_anothers_answer()
            self.each_is_counted_once_and_as_what_was_seen()
            assert stage.metrics.in_flight == 0
            assert stage.home.backlog.held == 0
            assert not stage.gate.under_way
            assert not any(pool.open or pool.waiting for pool in stage.pools.values())
            assert all(client.lost for client in self.asked)
            if not self.log_failed:
                sent = {path for upstream in stage.upstreams for path in stage.asked(upstream) if "echo" in path}
                assert sent <= {path for path, _ in stage.recorded()}
        finally:
            stage.close()

    def _dripping(self) -> list[Wire]:
        """Clients that go on with a body, at a byte now and then."""
        return [client for client, owed in self.owed.items() if owed and len(owed[-1]) > KB and not client.is_closing()]


def _request(path: str, key: str | None, method: str, body: str) -> list[bytes]:
    match body:
        case "whole":
            return [ask(path, key, method, b"abc")]
        case "late":
            return [ask(path, key, method, Content_Length=3), b"a", b"bc"]
        case "large":
            return [ask(path, key, method, Content_Length=300 * KB) + bytes(100 * KB), bytes(100 * KB), bytes(100 * KB)]
        case "chunked":
            return [ask(path, key, method, Transfer_Encoding="chunked") + b"3\r\nabc\r\n", b"0\r\n", b"\r\n"]
        case "expected":
            return [ask(path, key, method, Content_Length=3, Expect="100-continue"), b"abc"]
        case "too large":
            return [
                ask(path, key, method, Transfer_Encoding="chunked"),
                b"f0000\r\n" + bytes(0xF0000),
                b"\r\nfffff\r\n" + bytes(0xFFFFF),
            ]
    return [ask(path, key, method)]


def _responses(client: Wire, asked: list[tuple[str, str]]) -> list[tuple[int, bytes, bool]]:
    """Status, body and whether it is whole, of what a client was sent."""
    data = client.sent.replace(_INTERIM, b"")
    found: list[tuple[int, bytes, bool]] = []
    methods = itertools.chain((method for _, method in asked), itertools.repeat("GET"))
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, "half a head"
        status = int(head.split(b" ")[1])
        # What is refused before it is read has its body even if it would have been a HEAD.
        bodiless = next(methods) == "HEAD" and not data.startswith(b"{")
        body, whole, data = _body(head + b"\r\n", data, bodiless=bodiless)
        found.append((status, body, whole))
    return found


def _body(head: bytes, data: bytes, *, bodiless: bool) -> tuple[bytes, bool, bytes]:
    length = _LENGTH.search(head)
    if bodiless:
        return b"", True, data
    if length:
        size = int(length[1])
        return data[:size], len(data) >= size, data[size:]
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    body = b""
    while data:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            return body, True, data[2:]
        body, data = body + data[:size], data[size + 2 :]
    return body, False, b""


Machine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
