"""HTTP/1.1 heads (RFC 9112), read strictly: one regular expression says what bytes a head may have, so that taking it apart
at its line ends and first colons can go only one way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

import msgspec

from services.edge.http.fields import (
    CONNECTION,
    DATE,
    DROP,
    ENCODING,
    EXPECT,
    HOST,
    KEY,
    KINDS,
    LENGTH,
    PLATFORM,
    REQUEST_ID,
    UPGRADE,
    request_kind,
    request_kinds,
    response_kind,
    response_kinds,
)

HEAD_END = b"\r\n\r\n"
REQUEST_LINE_MAX = 8 * 1024
HEADERS_MAX = 100
HEADER_BLOCK_MAX = 32 * 1024
RESPONSE_HEAD_MAX = 64 * 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHODS = {name.encode(): name for name in METHODS}

# The quantifiers are possessive: no input makes the match try twice (RFC 9110, sections 5.1 and 5.5).
_FIELDS = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
_is_request = re.compile(rb"([A-Z]{1,32}+) (/[\x21-\x7e]*+|(?<=OPTIONS )\*) HTTP/1\.([01])\r\n" + _FIELDS).fullmatch
_ABSOLUTE = re.compile(rb"([A-Z]{1,32}+ )[Hh][Tt][Tt][Pp][Ss]?://([!-\"$-.0->@-~]++)([\x21-\x7e]*+)")
_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
# RFC 9110, section 15: a status above 599 is none.
_is_response = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n" + _FIELDS).fullmatch
# Of a head that has this form: its names and values, without the blanks before them.
_take_apart = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n").findall
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH_DIGITS = 15
_is_host = re.compile(rb"(?:[A-Za-z0-9.\-_]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5})?").fullmatch

_new_of_requests, _new_of_responses = request_kinds.new, response_kinds.new

Fields = list[tuple[bytes, bytes]]
Known = list[list[bytes] | None]


class BadMessage(Exception):  # noqa: N818 - what it is, not what we did wrong
    """The peer does not speak HTTP/1.1 as the edge accepts it. `status` and `code` are what a client is told."""

    def __init__(self, detail: str, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class Framing(msgspec.Struct, frozen=True, gc=False):
    """How long a body is: `length` bytes, or in chunks; neither: none in a request, until the end in a response."""

    length: int | None = None
    chunked: bool = False

    @property
    def empty(self) -> bool:
        """Whether no byte of a body follows (in a request)."""
        return not self.length and not self.chunked


_NO_LENGTH = Framing()
_CHUNKED = Framing(chunked=True)


class RequestHead(msgspec.Struct, frozen=True, gc=False):
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


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A response's head. `fields` are those that may go on to a client, `platform` the `Keyledger-` ones beside them.

    `bodiless`: no body follows, whatever `framing` declares (RFC 9112, section 6.3). `date` is empty when it has none.
    """

    status: int
    reason: bytes
    minor: int
    fields: Fields
    platform: Fields
    date: bytes
    framing: Framing
    bodiless: bool
    keep_alive: bool


def parse_request(head: bytes) -> RequestHead:
    """The request whose head, with the empty line at its end, is `head`; raises BadMessage."""
    line = head.index(b"\r\n")
    if line > REQUEST_LINE_MAX:
        raise BadMessage("The request line is too long", 414)
    if len(head) - line > HEADER_BLOCK_MAX:
        raise BadMessage("The headers are too large", 431)
    match = _is_request(head)
    authority = None
    if match is None:
        head, authority = _in_origin_form(head)
        line = head.index(b"\r\n")
        match = _is_request(head)
    if match is None:
        raise BadMessage("The request head is malformed")
    method, target, version = match.groups()
    name = _METHODS.get(method)
    if name is None:
        raise BadMessage("The method is not supported", 501, "not_implemented")
    fields = _take_apart(head, line + 2)
    if len(fields) > HEADERS_MAX:
        raise BadMessage("There are too many headers", 431)
    if _new_of_requests:
        _new_of_requests.clear()
    passed, known = _sorted(fields, request_kind)
    minor = 1 if version == b"1" else 0
    if minor == 0 and known[ENCODING]:
        raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
    connection, upgrade, expect = known[CONNECTION], known[UPGRADE], known[EXPECT]
    close, named = _NOTHING if connection is None else _connection(connection)
    host = _host(known[HOST], minor)
    return RequestHead(
        method=name,
        target=target,
        minor=minor,
        fields=_without(passed, named) if named else passed,
        framing=_framing(known),
        keep_alive=minor == 1 and not close,
        host=host if authority is None else authority,
        keys=known[KEY] or [],
        request_ids=known[REQUEST_ID] or [],
        expects_continue=expect is not None and minor == 1 and _expectation(expect),
        upgrade=b",".join(upgrade).lower() if upgrade else b"",
    )


def parse_response(head: bytes, method: str) -> ResponseHead:
    """The response to a request of `method` whose head, with the empty line at its end, is `head`; raises BadMessage."""
    match = _is_response(head)
    if match is None:
        raise BadMessage("The response head is malformed")
    version, code, reason = match.groups()
    fields = _take_apart(head, head.index(b"\r\n") + 2)
    if len(fields) > HEADERS_MAX:
        raise BadMessage("The response has too many headers")
    passed, known = _sorted(fields, response_kind)
    if _new_of_responses:
        response_kinds.learn()
    minor = 1 if version == b"1" else 0
    if minor == 0 and known[ENCODING]:
        raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
    connection, dates = known[CONNECTION], known[DATE]
    close, named = _NOTHING if connection is None else _connection(connection)
    status = int(code)
    return ResponseHead(
        status=status,
        reason=reason or b"",
        minor=minor,
        fields=_without(passed, named) if named else passed,
        platform=[field for field in fields if response_kind(field[0]) == PLATFORM] if known[PLATFORM] else [],
        date=dates[0] if dates else b"",
        framing=_framing(known),
        bodiless=method == "HEAD" or status < 200 or status in {204, 304},
        keep_alive=minor == 1 and not close,
    )


def after_empty_lines(data: bytes) -> bytes:
    """`data` without the empty lines at its beginning, which come before no request (RFC 9112, section 2.2)."""
    found = cast(re.Match[bytes], _EMPTY_LINES.match(data))
    return data[found.end() :]


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


def _in_origin_form(head: bytes) -> tuple[bytes, bytes]:
    """A head with an absolute target as one without, and the authority, which counts instead of Host's (section 3.2.2)."""
    match = _ABSOLUTE.match(head)
    if match is None and head.startswith(b"CONNECT "):
        raise BadMessage("The method is not supported", 501, "not_implemented")
    if match is None:
        raise BadMessage("The request head is malformed")
    method, authority, path = match.groups()
    if not _is_host(authority):
        raise BadMessage("The target's authority is no host")
    if not path.startswith(b"/"):
        path = b"*" if method == b"OPTIONS " and not path else b"/" + path
    return method + path + head[match.end() :], authority


def _sorted(fields: Fields, kind_of: Callable[[bytes], int]) -> tuple[Fields, Known]:
    """The fields that pass, and the values of those that are read, by kind."""
    passed: Fields = []
    known: Known = [None] * KINDS
    for field in fields:
        kind = kind_of(field[0])
        # PASS is 0, which most are.
        if not kind:
            passed.append(field)
        elif kind != DROP:
            value = field[1].rstrip(b" \t")
            values = known[kind]
            if values is None:
                known[kind] = [value]
            else:
                values.append(value)
    return passed, known


def _without(fields: Fields, named: frozenset[bytes]) -> Fields:
    """The fields that Connection does not name: those were meant for us alone (RFC 9110, section 7.6.1)."""
    return [field for field in fields if field[0].lower() not in named]


def _framing(known: Known) -> Framing:
    lengths, encodings = known[LENGTH], known[ENCODING]
    if encodings is not None:
        if lengths is not None or len(encodings) != 1 or encodings[0].lower() != b"chunked":
            raise BadMessage("The length of the body is ambiguous")
        return _CHUNKED
    if lengths is None:
        return _NO_LENGTH
    if len(lengths) != 1 or len(lengths[0]) > _LENGTH_DIGITS or not lengths[0].isdigit():
        raise BadMessage("The length of the body is ambiguous")
    return Framing(length=int(lengths[0]))


def _connection(values: list[bytes]) -> tuple[bool, frozenset[bytes]]:
    """Whether the connection ends with this message, and which headers were meant for us alone."""
    value = values[0] if len(values) == 1 else b",".join(values)
    return _USUAL.get(value) or _options(value)


def _options(value: bytes) -> tuple[bool, frozenset[bytes]]:
    options = frozenset(option.strip(b" \t").lower() for option in value.split(b","))
    return b"close" in options, options - {b"close", b"keep-alive"}


_NOTHING: tuple[bool, frozenset[bytes]] = (False, frozenset())
_USUAL = {
    value: _options(value) for value in (b"close", b"Close", b"keep-alive", b"Keep-Alive", b"Upgrade", b"upgrade")
}


def _host(values: list[bytes] | None, minor: int) -> bytes:
    if values is None and minor == 0:
        return b""
    if values is None or len(values) != 1 or _is_host(values[0]) is None:
        raise BadMessage("There must be exactly one valid Host")
    return values[0]


def _expectation(values: list[bytes]) -> bool:
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise BadMessage("The expectation is unknown", 417)
    return True
