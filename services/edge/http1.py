"""HTTP/1.1 heads (RFC 9112), read strictly: one regular expression says what bytes a head may have, httptools then takes
it apart. What either of them refuses is refused, so nothing that only one parser understands can pass the edge.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from services.edge.headers import (
    CONNECTION,
    DROP,
    ENCODING,
    EXPECT,
    HOST,
    KEY,
    KINDS,
    LENGTH,
    PASS,
    PLATFORM,
    REQUEST_ID,
    UPGRADE,
    request_kind,
    response_kind,
)

HEAD_END = b"\r\n\r\n"
REQUEST_LINE_MAX = 8 * 1024
HEADERS_MAX = 100
HEADER_BLOCK_MAX = 32 * 1024
RESPONSE_HEAD_MAX = 64 * 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# The quantifiers are possessive: no input makes the match try twice (RFC 9110, sections 5.1 and 5.5).
_FIELDS = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,32}+) ([\x21-\x7e]++) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n" + _FIELDS)
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_HOST = re.compile(rb"(?:[A-Za-z0-9.\-_]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5})?")

Fields = list[tuple[bytes, bytes]]
Known = list[list[bytes] | None]


class BadMessage(Exception):  # noqa: N818 - what it is, not what we did wrong
    """The peer does not speak HTTP/1.1 as the edge accepts it. `status` and `code` are what a client is told."""

    def __init__(self, detail: str, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


@dataclass(slots=True)
class Framing:
    """How long a body is: `length` bytes, or in chunks; neither: none in a request, until the end in a response."""

    length: int | None = None
    chunked: bool = False

    @property
    def empty(self) -> bool:
        """Whether no byte of a body follows (in a request)."""
        return not self.length and not self.chunked


@dataclass(slots=True)
class RequestHead:
    """A request's head. `fields` are those that may go on to an upstream; the others are taken out of the rest."""

    method: str
    target: bytes
    minor: int
    fields: Fields
    framing: Framing
    keep_alive: bool
    host: bytes
    keys: list[bytes]
    request_ids: list[bytes]
    expects_continue: bool
    upgrade: bytes


@dataclass(slots=True)
class ResponseHead:
    """A response's head. `fields` are those that may go on to a client, `platform` the `Keyledger-` ones beside them.

    `bodiless`: no body follows, whatever `framing` declares (RFC 9112, section 6.3).
    """

    status: int
    reason: bytes
    minor: int
    fields: Fields
    platform: Fields
    framing: Framing
    bodiless: bool
    keep_alive: bool


class _Parts:
    """Collects what httptools finds."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


class RequestParser:
    """Takes request heads apart. One serves all connections: it is given whole heads and keeps nothing between them."""

    def __init__(self) -> None:
        self._renew()

    def parse(self, head: bytes) -> RequestHead:
        """The request whose head, with the empty line at its end, is `head`; raises BadMessage."""
        line = head.index(b"\r\n")
        if line > REQUEST_LINE_MAX:
            raise BadMessage("The request line is too long", 414)
        if len(head) - line > HEADER_BLOCK_MAX:
            raise BadMessage("The headers are too large", 431)
        match = _REQUEST.fullmatch(head)
        if match is None:
            raise BadMessage("The request head is malformed")
        method, target, minor = match.groups()
        if method.decode() not in METHODS:
            raise BadMessage("The method is not supported", 501, "not_implemented")
        return self._request(method.decode(), target, int(minor), self._fields(head))

    def _fields(self, head: bytes) -> Fields:
        try:
            fields = self._feed(head)
        except httptools.HttpParserError:
            # Once more with a fresh one: what another connection's head left in it (it obeys Proxy-Connection, we don't)
            # must not become this one's error.
            self._renew()
            try:
                fields = self._feed(head)
            except httptools.HttpParserError as error:
                self._renew()
                raise BadMessage("The request head is malformed") from error
        if len(fields) > HEADERS_MAX:
            self._renew()
            raise BadMessage("There are too many headers", 431)
        return fields

    def _feed(self, head: bytes) -> Fields:
        parts = self._parts
        parts.fields = []
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._renew()
        return parts.fields

    def _request(self, method: str, target: bytes, minor: int, fields: Fields) -> RequestHead:
        passed, known = _sorted(fields, request_kind)
        options = _options(known[CONNECTION])
        keep_alive = minor == 1 and b"close" not in options
        if known[LENGTH] or known[ENCODING] or not keep_alive:
            # httptools waits for a body now, or for the end: neither comes to it.
            self._renew()
        if minor == 0 and known[ENCODING]:
            raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
        return RequestHead(
            method=method,
            target=target,
            minor=minor,
            fields=_without(passed, options),
            framing=_framing(known),
            keep_alive=keep_alive,
            host=_host(known[HOST], minor),
            keys=known[KEY] or [],
            request_ids=known[REQUEST_ID] or [],
            expects_continue=minor == 1 and _expectation(known[EXPECT]),
            upgrade=b",".join(known[UPGRADE] or ()).lower(),
        )

    def _renew(self) -> None:
        self._parts = _Parts()
        self._parser = httptools.HttpRequestParser(self._parts)


def parse_response(head: bytes, method: str) -> ResponseHead:
    """The response to a request of `method` whose head, with the empty line at its end, is `head`; raises BadMessage."""
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise BadMessage("The response head is malformed")
    parts = _Parts()
    try:
        httptools.HttpResponseParser(parts).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadMessage("The response head is malformed") from error
    if len(parts.fields) > HEADERS_MAX:
        raise BadMessage("The response has too many headers")
    minor, status, reason = match.groups()
    return _response(int(status), reason or b"", int(minor), parts.fields, method)


def check_beginning(head: bytes, new: int) -> None:
    """Raises BadMessage for what can't become a request head any more.

    `head` is what has arrived of it; the bytes before `new` were checked before.
    """
    check_lines(head, max(0, new - 1))
    line = head.find(b"\r\n")
    if (line if line >= 0 else len(head)) > REQUEST_LINE_MAX:
        raise BadMessage("The request line is too long", 414)
    if line >= 0 and len(head) - line > HEADER_BLOCK_MAX:
        raise BadMessage("The headers are too large", 431)


def check_lines(head: bytes, start: int) -> None:
    """Raises BadMessage when a line beyond `start` ends with anything but CR LF; the last byte may be a lone CR yet."""
    if _LONE_LINE_END.search(head, start):
        raise BadMessage("A line does not end with CR LF")


def _response(status: int, reason: bytes, minor: int, fields: Fields, method: str) -> ResponseHead:
    passed, known = _sorted(fields, response_kind)
    if minor == 0 and known[ENCODING]:
        raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
    options = _options(known[CONNECTION])
    return ResponseHead(
        status=status,
        reason=reason,
        minor=minor,
        fields=_without(passed, options),
        platform=[field for field in fields if response_kind(field[0]) == PLATFORM] if known[PLATFORM] else [],
        framing=_framing(known),
        bodiless=method == "HEAD" or status < 200 or status in {204, 304},
        keep_alive=minor == 1 and b"close" not in options,
    )


def _sorted(fields: Fields, kind_of: Callable[[bytes], int]) -> tuple[Fields, Known]:
    """The fields that pass, and the values of those that are read, by kind."""
    passed: Fields = []
    known: Known = [None] * KINDS
    for field in fields:
        kind = kind_of(field[0])
        if kind == PASS:
            passed.append(field)
        elif kind != DROP:
            value = field[1].rstrip(b" \t")
            values = known[kind]
            if values is None:
                known[kind] = [value]
            else:
                values.append(value)
    return passed, known


def _without(fields: Fields, options: frozenset[bytes]) -> Fields:
    """The fields that Connection does not name: those were meant for us alone (RFC 9110, section 7.6.1)."""
    if not options:
        return fields
    return [field for field in fields if field[0].lower() not in options]


def _framing(known: Known) -> Framing:
    lengths, encodings = known[LENGTH], known[ENCODING]
    if encodings is not None:
        if lengths is not None or len(encodings) != 1 or encodings[0].lower() != b"chunked":
            raise BadMessage("The length of the body is ambiguous")
        return Framing(chunked=True)
    if lengths is None:
        return Framing()
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise BadMessage("The length of the body is ambiguous")
    return Framing(length=int(lengths[0]))


_NO_OPTIONS: frozenset[bytes] = frozenset()


def _options(values: list[bytes] | None) -> frozenset[bytes]:
    if values is None:
        return _NO_OPTIONS
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


def _host(values: list[bytes] | None, minor: int) -> bytes:
    if values is None and minor == 0:
        return b""
    if values is None or len(values) != 1 or _HOST.fullmatch(values[0]) is None:
        raise BadMessage("There must be exactly one valid Host")
    return values[0]


def _expectation(values: list[bytes] | None) -> bool:
    if values is None:
        return False
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise BadMessage("The expectation is unknown", 417)
    return True
