"""Heads read once more, as plainly as can be: one regular expression says what bytes a head may have, nothing is remembered, and
each rule stands on its own. Slow, and what the edge's own reading is held against.
"""

from __future__ import annotations

import re

from services.edge.http import fields
from services.edge.http.fields import (
    CONNECTION,
    DATE,
    ENCODING,
    EXPECT,
    HOST,
    KEY,
    LENGTH,
    PASS,
    PLATFORM,
    REQUEST_ID,
    SECRET,
    UPGRADE,
)
from services.edge.http.message import METHODS

_FIELDS = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,32}+) (/[\x21-\x7e]*+|(?<=OPTIONS )\*) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*+))?\r\n" + _FIELDS)
_ABSOLUTE = re.compile(rb"([A-Z]{1,32}+ )[Hh][Tt][Tt][Pp][Ss]?://([!-\"$-.0->@-~]++)([\x21-\x7e]*+)")
_FIELD = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9.\-_]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5})?")
_BLANKS = b" \t"

Read = tuple[object, ...]


class Refused(Exception):  # noqa: N818 - what it is
    """A head that can't be read, or not in one way only."""


def request(head: bytes) -> Read:
    """What `head` means: method, target, minor version, lines that go on, keys, request ids, host, length (-1: chunked; None: no
    body), whether the connection stays, whether 100 is waited for, upgrade."""
    line, _, block = head.partition(b"\r\n")
    _refuse_if(len(line) > 8192 or len(block) + 2 > 32 * 1024)
    authority = None
    if not _REQUEST.fullmatch(head):
        head, authority = _relative(head)
    match = _REQUEST.fullmatch(head)
    if match is None:
        raise Refused
    method, target, minor = match[1].decode(), match[2], int(match[3])
    pairs = _FIELD.findall(head, head.index(b"\r\n") + 2)
    _refuse_if(method not in METHODS or len(pairs) > 100)
    known = [(fields._request_kind(name), name, value) for name, value in pairs]
    hosts, expects = _values(known, HOST), _values(known, EXPECT)
    _refuse_if(len(hosts) != 1 if minor or hosts else False)
    _refuse_if(any(_HOST.fullmatch(host) is None for host in hosts))
    _refuse_if(bool(expects) and minor == 1 and [expect.lower() for expect in expects] != [b"100-continue"])
    host = authority if authority is not None else hosts[0] if hosts else b""
    closes, passed = _connection(known)
    length = _length(known, minor)
    upgrade = b",".join(_values(known, UPGRADE)).lower()
    keys, ids = _values(known, KEY), _values(known, REQUEST_ID)
    expecting = bool(expects) and minor == 1
    return method, target, minor, passed, keys, ids, host, length, minor == 1 and not closes, expecting, upgrade


def response(head: bytes) -> Read:
    """What `head` means: status, reason, minor version, lines that go on, the platform's, the date, length, and whether the
    connection stays."""
    match = _RESPONSE.fullmatch(head)
    if match is None:
        raise Refused
    minor, status, reason = int(match[1]), int(match[2]), match[3] or b""
    pairs = _FIELD.findall(head, head.index(b"\r\n") + 2)
    _refuse_if(len(pairs) > 100)
    known = [(fields._response_kind(name), name, value) for name, value in pairs]
    closes, passed = _connection(known)
    platform = b"".join(b"%b: %b\r\n" % (name, value) for kind, name, value in known if kind == PLATFORM)
    date = [*_values(known, DATE), b""][0]
    return status, reason, minor, passed, platform, date, _length(known, minor), minor == 1 and not closes


Known = list[tuple[int, bytes, bytes]]


def _refuse_if(wrong: bool) -> None:
    if wrong:
        raise Refused


def _relative(head: bytes) -> tuple[bytes, bytes]:
    match = _ABSOLUTE.match(head)
    if match is None or _HOST.fullmatch(match[2]) is None:
        raise Refused
    method, authority, path = match.groups()
    if not path.startswith(b"/"):
        path = b"*" if method == b"OPTIONS " and not path else b"/" + path
    return method + path + head[match.end() :], authority


def _values(known: Known, wanted: int) -> list[bytes]:
    return [value.rstrip(_BLANKS) for kind, _, value in known if kind == wanted]


def _connection(known: Known) -> tuple[bool, bytes]:
    """Whether Connection says close, and the lines that go on: without those that it names."""
    options = {option.strip(_BLANKS).lower() for value in _values(known, CONNECTION) for option in value.split(b",")}
    lines = [
        b"%b: %b\r\n" % (name, value)
        for kind, name, value in known
        if kind in {PASS, SECRET} and name.lower() not in options - {b"close", b"keep-alive"}
    ]
    return b"close" in options, b"".join(lines)


def _length(known: Known, minor: int) -> int | None:
    lengths, encodings = _values(known, LENGTH), _values(known, ENCODING)
    if encodings:
        _refuse_if(minor == 0 or bool(lengths) or [encoding.lower() for encoding in encodings] != [b"chunked"])
        return -1
    if not lengths:
        return None
    _refuse_if(len(lengths) != 1 or len(lengths[0]) > 15 or not lengths[0].isdigit())
    return int(lengths[0])
