"""Heads taken apart: a first line, and header lines, each read on its own and sorted by what it is. `scan` is the same compiled,
for heads as most are; this is what holds.
"""

from __future__ import annotations

import re
from typing import NoReturn

from services.edge.http.fields import DATE, DROP, HOST, KEY, LENGTH, REQUEST_ID
from services.edge.http.lines import MALFORMED, NO_HOST, is_host, request_lines, response_lines
from services.edge.http.message import METHODS, BadMessage

REQUEST_LINE_MAX = 8 * 1024
HEADERS_MAX = 100
# With the first one, and what is left of the empty one when a head is taken apart at its line ends.
_LINES_MAX = HEADERS_MAX + 3
HEADER_BLOCK_MAX = 32 * 1024
ONE_HOST = "There must be exactly one valid Host"

_METHODS = {name.encode(): name for name in METHODS}
_METHOD_MAX = 32
_MINORS = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_VISIBLE = bytes(range(0x21, 0x7F))
# The quantifiers are possessive: no input makes the match try twice.
_is_absolute = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([!-\"$-.0->@-~]++)([\x21-\x7e]*+)").fullmatch

_known_of_requests, _known_of_responses = request_lines.get, response_lines.get

Rare = dict[int, list[bytes]]
"""The values that few messages have, by kind."""
RequestParts = tuple[str, bytes, int, bytes, list[bytes], list[bytes], list[bytes], Rare | None, bytes | None]
"""Method, target, minor version; fields that go on, keys, hosts, request ids; what few have; the authority in the target."""
ResponseParts = tuple[bytes, bytes, bytes | None, bytes | None, Rare | None]
"""The first line; fields that go on, the date, the length (AMBIGUOUS when there are several); what few have."""
AMBIGUOUS = b"more than one"


def request(head: bytes) -> RequestParts:
    """The parts of a request's head; raises BadMessage."""
    if len(head) > REQUEST_LINE_MAX:
        check_size(head)
    lines = head.split(b"\r\n")
    if len(lines) > _LINES_MAX:
        raise BadMessage("There are too many headers", 431)
    first = lines[0].split(b" ")
    minor = _MINORS.get(first[-1])
    if minor is None or len(first) != 3:
        raise BadMessage("The request head is malformed")
    method, target, _ = first
    authority = None
    if not target.startswith(b"/") or target.translate(None, _VISIBLE):
        target, authority = _in_origin_form(method, target)
    fields: list[bytes] = []
    keys: list[bytes] = []
    hosts: list[bytes] = []
    request_ids: list[bytes] = []
    rare: Rare | None = None
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
    return name, target, minor, b"".join(fields), keys, hosts, request_ids, rare, authority


def response(head: bytes) -> ResponseParts:
    """The parts of a response's head; raises BadMessage."""
    lines = head.split(b"\r\n")
    if len(lines) > _LINES_MAX:
        raise BadMessage("The response has too many headers")
    fields: list[bytes] = []
    date = length = None
    rare: Rare | None = None
    for line in lines[1:-2]:
        kind, value = _known_of_responses(line) or response_lines.read(line)
        # PASS is 0, which most are.
        if not kind:
            fields.append(value)
        elif kind == DATE:
            date = value if date is None else date
        elif kind == LENGTH:
            length = value if length is None else AMBIGUOUS
        elif kind != DROP:
            rare = _among(rare, kind, value)
    return lines[0], b"".join(fields), date, length, rare


def check_size(head: bytes) -> None:
    """Raises BadMessage for the beginning of a head that is too large."""
    line = head.find(b"\r\n")
    if (line if line >= 0 else len(head)) > REQUEST_LINE_MAX:
        raise BadMessage("The request line is too long", 414)
    if line >= 0 and len(head) - line > HEADER_BLOCK_MAX:
        raise BadMessage("The headers are too large", 431)


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


def _among(rare: Rare | None, kind: int, value: bytes) -> Rare:
    if kind == MALFORMED:
        raise BadMessage("A header line is malformed")
    if kind == NO_HOST:
        raise BadMessage(ONE_HOST)
    if rare is None:
        return {kind: [value]}
    rare.setdefault(kind, []).append(value)
    return rare
