"""HTTP/1.1 heads (RFC 9112), read strictly: a first line, and then header lines, each of one form only, so that taking a head
apart at its line ends and first colons can go only one way.
"""

from __future__ import annotations

import re
from typing import NoReturn, cast

import msgspec

from services.edge.http.fields import (
    CONNECTION,
    DATE,
    DROP,
    ENCODING,
    EXPECT,
    HOST,
    KEY,
    LENGTH,
    PLATFORM,
    REQUEST_ID,
    UPGRADE,
    request_kinds,
    response_kinds,
)
from services.edge.http.lines import MALFORMED, NO_HOST, is_host, request_lines, response_lines
from services.edge.memo import Memo, by_length

HEAD_END = b"\r\n\r\n"
REQUEST_LINE_MAX = 8 * 1024
HEADERS_MAX = 100
# With the first one, and what is left of the empty one when a head is taken apart at its line ends.
_LINES_MAX = HEADERS_MAX + 3
HEADER_BLOCK_MAX = 32 * 1024
RESPONSE_HEAD_MAX = 64 * 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHODS = {name.encode(): name for name in METHODS}

_METHOD_MAX = 32
_MINORS = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_VISIBLE = bytes(range(0x21, 0x7F))
# The quantifiers are possessive: no input makes the match try twice.
_is_absolute = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([!-\"$-.0->@-~]++)([\x21-\x7e]*+)").fullmatch
_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
# RFC 9110, section 15: a status above 599 is none.
_is_response = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?").fullmatch
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH_DIGITS = 15

_known_of_requests, _known_of_responses = request_lines.get, response_lines.get
_new_of_requests, _new_of_responses = request_kinds.new, response_kinds.new

Fields = list[bytes]
"""Header lines that go on, each ended."""
_Rare = dict[int, list[bytes]]
_NO_MORE: _Rare = {}
# Status, reason, and the minor version.
_Status = tuple[int, bytes, int]
_statuses: Memo[bytes, _Status] = Memo(64 * 1024, by_length(256))


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
    """A request's head. `fields` are those that may go on to an upstream; the others are taken out of the rest.

    `empty`: no byte of a body follows.
    """

    method: str
    target: bytes
    minor: int
    fields: Fields
    keys: list[bytes]
    request_ids: list[bytes]
    host: bytes
    framing: Framing = _NO_LENGTH
    empty: bool = True
    keep_alive: bool = True
    expects_continue: bool = False
    upgrade: bytes = b""


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
    if len(head) > REQUEST_LINE_MAX:
        _check_size(head)
    lines = head.split(b"\r\n")
    if len(lines) > _LINES_MAX:
        raise BadMessage("There are too many headers", 431)
    parts = lines[0].split(b" ")
    minor = _MINORS.get(parts[-1])
    if minor is None or len(parts) != 3:
        raise BadMessage("The request head is malformed")
    method, target, _ = parts
    authority = None
    if not target.startswith(b"/") or target.translate(None, _VISIBLE):
        target, authority = _in_origin_form(method, target)
    if _new_of_requests:
        _new_of_requests.clear()
    fields: Fields = []
    keys: list[bytes] = []
    hosts: list[bytes] = []
    request_ids: list[bytes] = []
    rare: _Rare = _NO_MORE
    for line in lines[1:-2]:
        kind, value = _known_of_requests(line) or request_lines.read(line)
        # PASS is 0, which most are.
        if not kind:
            fields.append(value)
        elif kind == HOST:
            hosts.append(value)
        elif kind == KEY:
            keys.append(value)
        elif kind == REQUEST_ID:
            request_ids.append(value)
        elif kind != DROP:
            rare = _among(rare, kind, value)
    name = _METHODS.get(method) or _no_method(method)
    host = hosts[0] if len(hosts) == 1 else _no_host(hosts, minor)
    if authority is not None:
        host = authority
    usual = RequestHead(name, target, minor, fields, keys, request_ids, host, keep_alive=minor == 1)
    return _unusual(usual, rare) if rare else usual


def parse_response(head: bytes, method: str) -> ResponseHead:
    """The response to a request of `method` whose head, with the empty line at its end, is `head`; raises BadMessage."""
    lines = head.split(b"\r\n")
    if len(lines) > _LINES_MAX:
        raise BadMessage("The response has too many headers")
    if _new_of_responses:
        # Of one that could not be read.
        _new_of_responses.clear()
    status, reason, minor = _statuses.get(lines[0]) or _status(lines[0])
    fields: Fields = []
    date = length = None
    rare: _Rare = _NO_MORE
    for line in lines[1:-2]:
        kind, value = _known_of_responses(line) or response_lines.read(line)
        # PASS is 0, which most are.
        if not kind:
            fields.append(value)
        elif kind == DATE:
            date = value if date is None else date
        elif kind == LENGTH:
            length = value if length is None else _AMBIGUOUS
        elif kind != DROP:
            rare = _among(rare, kind, value)
    if _new_of_responses:
        response_kinds.learn()
    close, named = _connection(rare.get(CONNECTION)) if rare else _NOTHING
    return ResponseHead(
        status,
        reason,
        minor,
        _without(fields, named) if named else fields,
        rare.get(PLATFORM, []),
        date or b"",
        _framing(length, rare.get(ENCODING), minor),
        method == "HEAD" or status < 200 or status in {204, 304},
        minor == 1 and not close,
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
    _check_size(head)


def _check_size(head: bytes) -> None:
    line = head.find(b"\r\n")
    if (line if line >= 0 else len(head)) > REQUEST_LINE_MAX:
        raise BadMessage("The request line is too long", 414)
    if line >= 0 and len(head) - line > HEADER_BLOCK_MAX:
        raise BadMessage("The headers are too large", 431)


def check_lines(head: bytes, start: int) -> None:
    """Raises BadMessage when a line beyond `start` ends with anything but CR LF; the last byte may be a lone CR yet."""
    if _LONE_LINE_END.search(head, start):
        raise BadMessage("A line does not end with CR LF")


def _in_origin_form(method: bytes, target: bytes) -> tuple[bytes, bytes | None]:
    """A target that is no path, as one, and the authority of an absolute one, which counts instead of Host's (RFC 9112,
    section 3.2).
    """
    if target == b"*" and method == b"OPTIONS":
        return target, None
    match = _is_absolute(target)
    if match is None and method == b"CONNECT":
        _no_method(method)
    if match is None:
        raise BadMessage("The request head is malformed")
    authority, path = match.groups()
    if not is_host(authority):
        raise BadMessage("The target's authority is no host")
    if not path.startswith(b"/"):
        path = b"*" if method == b"OPTIONS" and not path else b"/" + path
    return path, authority


def _no_method(method: bytes) -> NoReturn:
    if not (method.isalpha() and method.isupper()) or len(method) > _METHOD_MAX:
        raise BadMessage("The request head is malformed")
    raise BadMessage("The method is not supported", 501, "not_implemented")


def _among(rare: _Rare, kind: int, value: bytes) -> _Rare:
    """The values that few messages have, by kind, with one more."""
    if kind == MALFORMED:
        raise BadMessage("A header line is malformed")
    if kind == NO_HOST:
        raise BadMessage(_ONE_HOST)
    if not rare:
        return {kind: [value]}
    rare.setdefault(kind, []).append(value)
    return rare


def _unusual(usual: RequestHead, rare: _Rare) -> RequestHead:
    """What the fields make of a request that few of them have."""
    lengths = rare.get(LENGTH)
    length = None if lengths is None else lengths[0] if len(lengths) == 1 else _AMBIGUOUS
    framing = _framing(length, rare.get(ENCODING), usual.minor)
    close, named = _connection(rare.get(CONNECTION))
    return RequestHead(
        usual.method,
        usual.target,
        usual.minor,
        _without(usual.fields, named) if named else usual.fields,
        usual.keys,
        usual.request_ids,
        usual.host,
        framing,
        framing.empty,
        keep_alive=usual.keep_alive and not close,
        expects_continue=EXPECT in rare and usual.minor == 1 and _expectation(rare[EXPECT]),
        upgrade=b",".join(rare.get(UPGRADE, ())).lower(),
    )


def _without(fields: Fields, named: frozenset[bytes]) -> Fields:
    """The fields that Connection does not name: those were meant for us alone (RFC 9110, section 7.6.1)."""
    return [field for field in fields if field.partition(b":")[0].lower() not in named]


def _status(line: bytes) -> _Status:
    match = _is_response(line)
    if match is None:
        raise BadMessage("The response head is malformed")
    version, code, reason = match.groups()
    status = int(code), reason or b"", 1 if version == b"1" else 0
    _statuses.notice(line, status)
    return status


_AMBIGUOUS = b"more than one"


def _framing(length: bytes | None, encodings: list[bytes] | None, minor: int) -> Framing:
    if encodings is not None:
        if minor == 0:
            raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
        if length is not None or len(encodings) != 1 or encodings[0].lower() != b"chunked":
            raise BadMessage("The length of the body is ambiguous")
        return _CHUNKED
    if length is None:
        return _NO_LENGTH
    if len(length) > _LENGTH_DIGITS or not length.isdigit():
        raise BadMessage("The length of the body is ambiguous")
    return Framing(int(length))


def _connection(values: list[bytes] | None) -> tuple[bool, frozenset[bytes]]:
    """Whether the connection ends with this message, and which headers were meant for us alone."""
    if values is None:
        return _NOTHING
    options = frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b","))
    return b"close" in options, options - {b"close", b"keep-alive"}


_NOTHING: tuple[bool, frozenset[bytes]] = (False, frozenset())


_ONE_HOST = "There must be exactly one valid Host"


def _no_host(hosts: list[bytes], minor: int) -> bytes:
    if hosts or minor == 1:
        raise BadMessage(_ONE_HOST)
    return b""


def _expectation(values: list[bytes]) -> bool:
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise BadMessage("The expectation is unknown", 417)
    return True
