"""What is fuzzed, and what has to hold."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import h11
import httptools

from services.edge import compiled
from services.edge.domain import KeyState, Outcome, OwnerState, decide
from services.edge.http import parts, paths
from services.edge.http.fields import request_kinds
from services.edge.http.head import parse_request, parse_response
from services.edge.http.message import BadMessage
from services.edge.routes import Route, Table
from services.edge.serving import connection as client_side
from services.edge.serving import exchange
from services.edge.upstream import connection as upstream_side
from tests.attack import corpus
from tests.fuzz import plain
from tests.fuzz.mutate import TOKENS
from tests.unit.edge.serving.stage import Stage, Wire, answer, ask

KEY = "{key}"
_REQUEST_ID = re.compile(rb"\r\nX-Request-ID: ([0-9a-f]{32})\r\n")
_UNREADABLE = {400, 414, 417, 431, 501}
Seen = tuple[str, str, bytes]


class Wrong(Exception):  # noqa: N818 - what it is
    """Something does not hold; `data` is what it was tried with, when that is not the input itself."""

    def __init__(self, what: str, data: bytes | None = None) -> None:
        super().__init__(what)
        self.data = data


class _Staged:
    """A target that plays on a stage, on which an exception is not only told in a log."""

    def __init__(self) -> None:
        self._stage = Stage()
        self._key = self._stage.key()
        self._silenced = [patch.object(module, "_log", _Loud()) for module in (client_side, exchange, upstream_side)]
        for each in self._silenced:
            each.start()

    def close(self) -> None:
        """Gives back what the stage took."""
        for each in self._silenced:
            each.stop()
        self._stage.close()


class Requests(_Staged):
    """Bytes from a client. However they are cut, they come to the same requests; two other parsers see in what goes to the
    upstream the same as the records say; what the edge and llhttp both read, they read alike."""

    def seeds(self) -> list[bytes]:
        """The corpus of requests, with another behind each."""
        return [case.data("/echo/a", KEY) + ask("/echo/next", KEY) for case in corpus.requests()]

    def run(self, data: bytes, random: Random) -> str:
        """What came of the bytes: the statuses, and how many requests an upstream saw."""
        data = data.replace(KEY.encode(), self._key.encode())
        statuses, seen, details = self._play([data])
        cuts = sorted(random.randint(0, len(data)) for _ in range(random.choice((1, 3, 30))))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        _same_however_cut((statuses, seen), self._play(pieces)[:2])
        theirs, comparable = _raw(data)
        if comparable and not _in_order(seen, theirs):
            raise Wrong(f"an upstream saw {seen!r}, llhttp {theirs!r}")
        return f"{'accepted' if seen else 'refused'} {statuses} {len(seen)} {details}"

    def _play(self, pieces: list[bytes]) -> tuple[list[int], list[Seen], list[str]]:
        stage = self._stage
        stage.log.records.clear()
        client = stage.client()
        upstreams: list[Wire] = []
        taken: list[tuple[Seen, str]] = []
        for piece in filter(None, pieces):
            stage.turn(lambda piece=piece: client.receive(piece))
            _serve(stage, upstreams, taken)
        statuses = [status for status in stage.statuses(client) if status != 100]
        details = re.findall(rb'"detail":"([^"]*)"', client.sent)
        _read_back(client)
        _end(stage, client, upstreams)
        records = {record.request_id: record for record in stage.log.records}
        for (method, target, _), request_id in taken:
            record = records.get(request_id)
            if record is None or (record.method, record.endpoint) != (method, target.partition("?")[0][:512]):
                raise Wrong(f"the upstream saw {method} {target}, the row says {record}")
        if len({request_id for _, request_id in taken}) != len(taken):
            raise Wrong("a request went to the upstream twice")
        return statuses, [seen for seen, _ in taken], [detail.decode() for detail in details]


class Responses(_Staged):
    """Bytes from an upstream: the client gets one answer that it can read, or none; its row says the same; and whoever asks
    next gets the answer to what it asked."""

    def seeds(self) -> list[bytes]:
        """The corpus of responses."""
        return [text.encode("latin-1") for _, _, _, text in corpus.responses()]

    def run(self, data: bytes, random: Random) -> str:
        """What came of the bytes: the status, and whether the answer was whole."""
        stage = self._stage
        stage.log.records.clear()
        method = random.choice(("GET", "GET", "POST", "HEAD"))
        client, upstreams = stage.client(), []
        stage.turn(lambda: client.receive(ask("/echo/first", self._key, method)))
        upstream = _dialled(stage, upstreams)
        cut = random.randint(0, len(data)) if random.random() < 0.5 else len(data)
        for piece in filter(None, (data[:cut], data[cut:])):
            stage.turn(lambda piece=piece: upstream.receive(piece) if not upstream.lost else None)
            stage.turns(3)
        stage.turn(lambda: upstream.end() if not upstream.lost else None)
        stage.turns(4)
        statuses, whole = _first(client, method)
        if [record.status_code for record in stage.log.records] != statuses[:1] and statuses:
            raise Wrong(f"the client got {statuses}, the rows say {stage.recorded()}")
        if not stage.log.records:
            raise Wrong("the answer has no row")
        if not whole and not client.lost:
            raise Wrong(f"the client waits for more than {client.sent!r}")
        self._next(client, upstreams)
        _end(stage, client, upstreams)
        accepted = "refused" if statuses == [502] or not whole else "accepted"
        return f"{accepted} {method} {statuses} {whole}"

    def _next(self, client: Wire, upstreams: list[Wire]) -> None:
        stage = self._stage
        another = client if not client.lost and not client.ended else stage.client()
        another.sent = b""
        stage.turn(lambda: another.receive(ask("/echo/next", self._key)))
        for _ in range(8):
            stage.turns(2)
            for wire in (*(dial.accept() for dial in tuple(stage.loop.dials)), *upstreams):
                if wire not in upstreams:
                    upstreams.append(wire)
            for wire in upstreams:
                if b" /echo/next " in wire.sent and not wire.lost:
                    wire.sent = b""
                    stage.turn(lambda wire=wire: wire.receive(answer(b"next")))
        if not another.sent.endswith(b"\r\n\r\nnext"):
            raise Wrong(f"who asked next got {another.sent!r}")
        if another is not client:
            _end(stage, another, [])


class Heads:
    """Heads of requests and of responses: read by the edge, which remembers lines, they mean what they mean when they are read
    plainly, and twice the same."""

    def close(self) -> None:
        """Nothing was taken."""

    def seeds(self) -> list[bytes]:
        """The corpus's heads."""
        requests = (case.data("/echo/a", KEY) for case in corpus.requests())
        responses = (text.encode("latin-1") for _, _, _, text in corpus.responses())
        return [data.partition(b"\r\n\r\n")[0] for data in (*requests, *responses)]

    def run(self, data: bytes, _random: Random) -> str:
        """What came of it: refused, or what was read."""
        head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        response = head.startswith(b"HTTP/")
        ours, theirs = (_response, plain.response) if response else (_request, plain.request)
        meant = _meant(theirs, head)
        for _ in range(2):
            _same("read plainly", _meant(ours, head), meant)
        if not response:
            request_kinds.learn()
        return f"{'refused' if meant is None else 'accepted'} {response} {meant and bool(meant[-1])}"


class Scan:
    """Heads taken apart by `scan`, compiled, and by `parts`: what the one takes is the same to the other. Each input is the first
    of many, each a change away from the one before, for the two are fast.
    """

    batch = 500

    def close(self) -> None:
        """Nothing was taken."""

    def seeds(self) -> list[bytes]:
        """The corpus's heads, and some that are taken."""
        plainly = [
            b"GET /echo/a?b=c HTTP/1.1\r\nHost: h:80\r\nX-API-Key: {key}\r\nX-Request-ID: r\r\nAccept: */*\r\nCookie:a=b",
            b"POST /echo HTTP/1.0\r\nhost: [::1]\r\nx-api-key:\t{key} \r\nContent-Length: 3\r\nConnection: keep-alive",
            b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 3\r\nKeyledger-A: b\r\nContent-Type: a/b\r\nSet-Cookie: c=d",
            b"HTTP/1.0 404 No\r\nTransfer-Encoding: chunked\r\nConnection: close, X-A\r\nX-A: b\r\nProxy-X: 1",
        ]
        return [*plainly, *Heads().seeds()]

    def run(self, data: bytes, random: Random) -> str:
        """What came of the last one, as a whole: whether it was taken, and how many of a kind it had."""
        came_to = "refused"
        first = head = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        for _ in range(self.batch):
            came_to = self._taken_apart(head)
            # One that is not taken is no good beginning.
            head = _changed(head if came_to != "refused" else first, random)
        return came_to

    @staticmethod
    def _taken_apart(head: bytes) -> str:
        from services.edge.http import scan  # noqa: PLC0415 - it is not there in the plain form

        response = head.startswith(b"HTTP/")
        ours = (scan.response if response else scan.request)(head)
        if ours is None:
            return "refused"
        try:
            theirs = (parts.response if response else parts.request)(head)
        except BadMessage as error:
            raise Wrong(f"{head!r} was taken, but {error}", head) from None
        if ours != theirs:
            raise Wrong(f"{head!r}: {ours!r} against {theirs!r}", head)
        rare = next((part for part in ours if isinstance(part, dict)), ())
        return f"accepted {response} {[len(part) for part in ours if isinstance(part, list)]} {sorted(rare)}"


class Paths:
    """Paths: however a server decodes, cuts and normalises one that passes, it stays on the route that the edge found."""

    def __init__(self) -> None:
        routes = [
            Route(prefix.strip("/") or "all", prefix, "http://h", "route:x")
            for prefix in ("/echo", "/echo/guarded", "/a")
        ]
        self._table = Table(routes)

    def close(self) -> None:
        """Nothing was taken."""

    def seeds(self) -> list[bytes]:
        """The corpus of paths."""
        return [f"/echo{below}".encode() for belows in corpus.paths().values() for below in belows]

    def run(self, data: bytes, _random: Random) -> str:
        """What came of it: refused, or the route."""
        target = b"/" + bytes(byte if 33 <= byte < 127 else 33 + byte % 94 for byte in data.removeprefix(b"/"))
        try:
            path, meant = paths.split(target)
            route = self._table.match(meant)
        except (BadMessage, LookupError) as error:
            return f"refused {error if isinstance(error, BadMessage) else 'by parameters'}"
        for view in _views(path, meant):
            if self._table._match(view) is not route:
                raise Wrong(f"{path} is on {route and route.name}, but {view} is not")
        return f"accepted {route and route.name}"


class Decisions:
    """Keys, owners and requests at random, judged by rules written down once more, as plainly as can be."""

    def close(self) -> None:
        """Nothing was taken."""

    def seeds(self) -> list[bytes]:
        """None is needed."""
        return [b""]

    def run(self, _data: bytes, random: Random) -> str:
        """The outcome."""
        now = 1000
        known = random.choice((b"a", b"b"))
        hashes = tuple((h, random.choice((None, now - 1, now, now + 1))) for h in (b"a", b"b")[: random.randint(0, 2)])
        cidrs = random.choice(((), (), ("10.0.0.0/8",), ("2001:db8::/32", "10.1.2.3/32"), ("nonsense",)))
        key = KeyState(
            1, 1, 1, 1, random.choice(("active", "active", "inactive", "revoked", "deleted", "unreadable", "new")),
            permissions=frozenset(random.sample(("read", "write", "admin"), random.randint(0, 2))),
            expires_at_ns=random.choice((None, None, now - 1, now, now + 1)), addresses=cidrs, hashes=hashes,
        )  # fmt: skip
        owner = random.choice(
            (None, *(OwnerState(1, 1, 1, status) for status in ("active", "active", "suspended", "odd")))
        )
        address = random.choice(
            (None, "10.1.2.3", "10.9.9.9", "11.0.0.1", "2001:db8::1", "::ffff:10.1.2.3", "nonsense")
        )
        permission = random.choice((None, "read", "write"))
        held = random.choice((key, key, key, None))
        stale = random.random() < 0.5
        outcome = decide(held, owner, known, wall_ns=now, address=address, permission=permission, stale=stale)
        _same("judged", outcome, _judged(held, owner, known, now, address, permission, stale))
        return f"{'accepted' if outcome is Outcome.allowed else 'refused'} {outcome}"


def _judged(
    key: KeyState | None,
    owner: OwnerState | None,
    known: bytes,
    now: int,
    address: str | None,
    permission: str | None,
    stale: bool,
) -> Outcome:
    if key is None:
        return Outcome.not_ready if stale else Outcome.unknown
    valid = dict(key.hashes).get(known, 0)
    mapped = "::ffff:10.1.2.3"
    inside: dict[str, tuple[str, ...]] = {
        "10.0.0.0/8": ("10.1.2.3", "10.9.9.9", mapped),
        "10.1.2.3/32": ("10.1.2.3", mapped),
        "2001:db8::/32": ("2001:db8::1",),
    }
    rules: list[tuple[bool, Outcome]] = [
        (key.status == "deleted", Outcome.deleted),
        (key.status == "revoked", Outcome.revoked),
        (key.expires_at_ns is not None and now >= key.expires_at_ns, Outcome.expired),
        (valid == 0, Outcome.unknown),
        (valid is not None and now >= valid, Outcome.expired),
        (key.status == "inactive", Outcome.inactive),
        (key.status != "active" or owner is None or owner.status not in {"active", "suspended"}, Outcome.not_ready),
        (owner is not None and owner.status == "suspended", Outcome.owner_suspended),
        (bool(key.addresses) and not any(address in inside.get(c, ()) for c in key.addresses), Outcome.address_refused),
        (permission is not None and not {permission, "admin"} & key.permissions, Outcome.forbidden),
    ]
    return next((outcome for applies, outcome in rules if applies), Outcome.allowed)


def _views(path: str, meant: str) -> set[str]:
    """What servers make of a path: decoded, `;parameters` cut, backslashes turned, slashes merged, segments resolved, or all."""
    views = {meant, unquote(path), unquote(meant)}
    views |= {paths.without_parameters(view) for view in views}
    views |= {view.replace("\\", "/") for view in views}
    views |= {re.sub("/+", "/", view) for view in views}
    views |= {posixpath.normpath(view) + ("/" if view.endswith("/") and view != "/" else "") for view in views}
    return {view for view in views if view.startswith("/")}


TARGETS: dict[str, Callable[[], Any]] = {
    "requests": Requests,
    "responses": Responses,
    "heads": Heads,
    **({"scan": Scan} if compiled.RUNS else {}),
    "paths": Paths,
    "decisions": Decisions,
}


class _Loud:
    """A log in which an exception is not only told."""

    def exception(self, event: str, **_: object) -> None:
        raise Wrong(event)

    def warning(self, event: str, **_: object) -> None:
        pass


def _changed(head: bytes, random: Random) -> bytes:
    """`head` after one small change."""
    number = random.getrandbits(40)
    at, number = number % len(head), number >> 16
    what, number = number & 7, number >> 3
    if what < 3:
        return b"%b%c%b" % (head[:at], number & 255, head[at + 1 :])
    if what < 5:
        return head[:at] + TOKENS[number % len(TOKENS)] + head[at:]
    if what == 5:
        return head[:at] + head[at + 1 + (number & 7) :]
    lines = head[:-4].split(b"\r\n")
    one, other = number % len(lines), number // 128 % len(lines)
    lines.insert(one, lines[other]) if what == 6 and len(lines) < 12 else lines.append(lines.pop(other))
    return b"\r\n".join((*lines, b"", b""))


def _meant(read: Callable[[bytes], plain.Read], head: bytes) -> plain.Read | None:
    try:
        return read(head)
    except (BadMessage, plain.Refused):
        return None


def _request(head: bytes) -> plain.Read:
    r = parse_request(head)
    length = -1 if r.framing.chunked else r.framing.length
    if r.empty is not (length in {None, 0}):
        raise Wrong(f"{head!r} has a body, or none")
    read = (r.method, r.target, r.minor, r.fields, r.keys, r.request_ids, r.host, length, r.keep_alive)
    return *read, r.expects_continue, r.upgrade


def _response(head: bytes) -> plain.Read:
    r = parse_response(head, "GET")
    length = -1 if r.framing.chunked else r.framing.length
    return r.status, r.reason, r.minor, r.fields, r.platform, r.date, length, r.keep_alive


def _same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise Wrong(f"{what}: {ours!r} against {theirs!r}")


def _same_however_cut(one: tuple[list[int], list[Seen]], other: tuple[list[int], list[Seen]]) -> None:
    """A head in pieces may be refused before all that is wrong is there, and an answer of the edge's own may end a connection whose
    request's body is not there yet: but nobody sees another request for it."""
    short, long = sorted((one, other), key=lambda played: len(played[0]))
    statuses = [[400 if status in _UNREADABLE else status for status in played[0]] for played in (short, long)]
    sooner = set(statuses[0]) - {200}
    cut = [part[: len(first)] if sooner else part for part, first in ((statuses[1], statuses[0]), (long[1], short[1]))]
    _same("cut otherwise", (statuses[0], short[1]), tuple(cut))


def _dialled(stage: Stage, upstreams: list[Wire]) -> Wire:
    upstreams.append(stage.accept())
    return upstreams[-1]


def _serve(stage: Stage, upstreams: list[Wire], taken: list[tuple[Seen, str]]) -> None:
    """Accepts and answers what the edge asks of upstreams, until it asks no more."""
    for _ in range(300):
        stage.turns(5)
        while stage.loop.dials:
            _dialled(stage, upstreams)
        ready = [wire for wire in upstreams if not wire.lost and _complete(wire.sent)]
        for wire in ready:
            method, target, body, head = _complete(wire.sent) or ("", "", b"", b"")
            found = _REQUEST_ID.findall(head)
            if len(found) != 1 or b"\r\nX-API-Key:" in head:
                raise Wrong(f"an upstream was told {head!r}")
            _same("read by llhttp", [(method, target, body)], _raw(wire.sent)[0])
            taken.append(((method, target, body), found[0].decode()))
            wire.sent = b""
            stage.turn(lambda wire=wire, method=method: wire.receive(answer(b"" if method == "HEAD" else b"ok")))
        if not ready and not stage.loop.dials:
            return
    raise Wrong("it asks upstreams for ever")


def _complete(sent: bytes) -> tuple[str, str, bytes, bytes] | None:
    """A request as h11 reads what was sent to an upstream; None when more is to come."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(sent)
    request, body = None, b""
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise Wrong(f"h11 can't read what an upstream is told: {error}: {sent!r}") from None
        match event:
            case h11.Request():
                request = event
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                if request is None or parser.trailing_data[0]:
                    raise Wrong(f"an upstream is told more than one request: {sent!r}")
                return request.method.decode(), request.target.decode(), body, sent.partition(b"\r\n\r\n")[0] + b"\r\n"
            case _:
                return None


class _Raw:
    """What llhttp makes of bytes."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self._target, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        self.requests.append((method, self._target.decode("latin-1"), self._body))


def _raw(data: bytes) -> tuple[list[Seen], bool]:
    """The requests in these bytes that llhttp takes, and whether they can be compared: it stops at an upgrade, which we do not do,
    and leaves absolute targets as they are."""
    raw, stopped = _Raw(), False
    try:
        raw.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        stopped = True
    except httptools.HttpParserError:
        pass
    return raw.requests, not stopped and all(target.startswith("/") for _, target, _ in raw.requests)


def _in_order(some: list[Seen], every: list[Seen]) -> bool:
    """Whether all of `some` are among `every`, in the same order: others the edge answered itself."""
    rest = iter(every)
    return all(each in rest for each in some)


def _read_back(client: Wire) -> None:
    """What a client got are answers, one after the other: each has the head and the body that it says."""
    data = client.sent
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        if not end or not head.startswith(b"HTTP/1.1 "):
            raise Wrong(f"a client got {data[:200]!r}")
        # An answer to HEAD has the length of a body that is not there.
        count = 0 if length is None or rest.startswith(b"HTTP/1.1 ") or not rest else int(length[1])
        data = rest[count:]


def _first(client: Wire, method: str) -> tuple[list[int], bool]:
    """The status of the answer that a client got, as h11 reads it, and whether it is whole."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    parser.send(h11.Request(method=method, target="/", headers=[("Host", "h"), ("Content-Length", "0")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(client.sent)
    if client.lost or client.ended:
        parser.receive_data(b"")
    statuses: list[int] = []
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            return statuses, False
        match event:
            case h11.Response():
                statuses.append(event.status_code)
            case h11.EndOfMessage():
                if parser.trailing_data[0]:
                    raise Wrong(f"a client got more than one answer: {client.sent!r}")
                return statuses, True
            case h11.Data() | h11.InformationalResponse():
                pass
            case _:
                return statuses, False


def _end(stage: Stage, client: Wire, upstreams: list[Wire]) -> None:
    """Everybody goes; nothing may be left."""
    for wire in (client, *upstreams):
        if not wire.lost:
            stage.turn(wire.reset)
    for dial in tuple(stage.loop.dials):
        stage.turn(lambda dial=dial: dial.fail(ConnectionRefusedError()))
    stage.turns(6)
    stage.clients.clear()
    stage.upstreams.clear()
    if stage.metrics.in_flight:
        raise Wrong(f"{stage.metrics.in_flight} requests are under way and nobody is there")
