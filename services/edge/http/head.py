"""HTTP/1.1 heads (RFC 9112), read strictly: a first line, and then header lines, each of one form only, so that taking a head
apart at its line ends and first colons can go only one way. `parts` takes it apart; here is what the parts mean together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, cast

from services.edge import compiled
from services.edge.http import parts
from services.edge.http.fields import (
    CONNECTION,
    ENCODING,
    EXPECT,
    LENGTH,
    PLATFORM,
    UPGRADE,
    request_kinds,
    response_kinds,
)
from services.edge.http.message import CHUNKED, NO_LENGTH, BadMessage, Framing, RequestHead, ResponseHead
from services.edge.http.parts import AMBIGUOUS, ONE_HOST, Rare, RequestParts, ResponseParts
from services.edge.memo import Memo, by_length

_scan_request: Callable[[bytes], RequestParts | None] = parts.request
_scan_response: Callable[[bytes], ResponseParts | None] = parts.response
if compiled.RUNS:
    from services.edge.http import scan

    _scan_request, _scan_response = scan.request, scan.response

HEAD_END: Final = b"\r\n\r\n"
RESPONSE_HEAD_MAX: Final = 64 * 1024
_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
# RFC 9110, section 15: a status above 599 is none.
_is_response = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?").fullmatch
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH_DIGITS: Final = 15

_new_of_requests, _new_of_responses = request_kinds.new, response_kinds.new

# Status, reason, and the minor version.
_Status = tuple[int, bytes, int]
_statuses: Final[Memo[bytes, _Status]] = Memo(64 * 1024, by_length(256))


def parse_request(head: bytes) -> RequestHead:
    """The request whose head, with the empty line at its end, is `head`; raises BadMessage."""
    if _new_of_requests:
        _new_of_requests.clear()
    name, target, minor, fields, keys, hosts, request_ids, rare, authority = _scan_request(head) or parts.request(head)
    host = hosts[0] if len(hosts) == 1 else _no_host(hosts, minor)
    if authority is not None:
        host = authority
    usual = RequestHead(name, target, minor, fields, keys, request_ids, host, keep_alive=minor == 1)
    return usual if rare is None else _unusual(usual, rare)


def parse_response(head: bytes, method: str) -> ResponseHead:
    """The response to a request of `method` whose head, with the empty line at its end, is `head`; raises BadMessage."""
    if _new_of_responses:
        # Of one that could not be read.
        _new_of_responses.clear()
    first, fields, date, length, rare = _scan_response(head) or parts.response(head)
    status, reason, minor = _statuses.get(first) or _status(first)
    if _new_of_responses:
        response_kinds.learn()
    bodiless = method == "HEAD" or status < 200 or status in {204, 304}
    if rare is None:
        return ResponseHead(
            status, reason, minor, fields, b"", date or b"", _framing(length, None, minor), bodiless, minor == 1
        )
    close, named = _connection(rare.get(CONNECTION))
    return ResponseHead(
        status,
        reason,
        minor,
        _without(fields, named) if named else fields,
        b"".join(rare.get(PLATFORM, ())),
        date or b"",
        _framing(length, rare.get(ENCODING), minor),
        bodiless,
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
    parts.check_size(head)


def check_lines(head: bytes, start: int) -> None:
    """Raises BadMessage when a line beyond `start` ends with anything but CR LF; the last byte may be a lone CR yet."""
    if _LONE_LINE_END.search(head, start):
        raise BadMessage("A line does not end with CR LF")


def _unusual(usual: RequestHead, rare: Rare) -> RequestHead:
    """What the fields make of a request that few of them have."""
    lengths = rare.get(LENGTH)
    length = None if lengths is None else lengths[0] if len(lengths) == 1 else AMBIGUOUS
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


def _without(fields: bytes, named: frozenset[bytes]) -> bytes:
    """The fields that Connection does not name: those were meant for us alone (RFC 9110, section 7.6.1)."""
    lines = fields.splitlines(keepends=True)
    return b"".join(line for line in lines if line.partition(b":")[0].lower() not in named)


def _status(line: bytes) -> _Status:
    match = _is_response(line)
    if match is None:
        raise BadMessage("The response head is malformed")
    version, code, reason = match.groups()
    status = int(code), reason or b"", 1 if version == b"1" else 0
    _statuses.notice(line, status)
    return status


def _framing(length: bytes | None, encodings: list[bytes] | None, minor: int) -> Framing:
    if encodings is not None:
        if minor == 0:
            raise BadMessage("HTTP/1.0 knows no Transfer-Encoding")
        if length is not None or len(encodings) != 1 or encodings[0].lower() != b"chunked":
            raise BadMessage("The length of the body is ambiguous")
        return CHUNKED
    if length is None:
        return NO_LENGTH
    if len(length) > _LENGTH_DIGITS or not length.isdigit():
        raise BadMessage("The length of the body is ambiguous")
    return Framing(int(length))


def _connection(values: list[bytes] | None) -> tuple[bool, frozenset[bytes]]:
    """Whether the connection ends with this message, and which headers were meant for us alone."""
    if values is None:
        return _NOTHING
    options = frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b","))
    return b"close" in options, options - {b"close", b"keep-alive"}


_NOTHING: Final[tuple[bool, frozenset[bytes]]] = (False, frozenset())


def _no_host(hosts: list[bytes], minor: int) -> bytes:
    if hosts or minor == 1:
        raise BadMessage(ONE_HOST)
    return b""


def _expectation(values: list[bytes]) -> bool:
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise BadMessage("The expectation is unknown", 417)
    return True
