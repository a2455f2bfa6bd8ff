"""Header lines, each read on its own: what kind it is, and what of it is used. A line that comes again is known by its bytes.

Nothing is remembered that could let somebody in, and nothing that comes only once: who sends a million made-up lines fills
nothing.
"""

from __future__ import annotations

import re

from services.edge.http.fields import (
    CONNECTION,
    DROP,
    HOST,
    KEY,
    PASS,
    PLATFORM,
    REQUEST_ID,
    SECRET,
    Kinds,
    request_kinds,
    response_kinds,
)
from services.edge.memo import Memo, by_length

# Of lines, in bytes, each with what a dict needs for it: the few hundred that recur, and a Date a second.
_MEMO = 512 * 1024
_ENTRY = 256
_LINE_MAX = 512
MALFORMED = -1
NO_HOST = -2

# RFC 9110, sections 5.1 and 5.5. The quantifiers are possessive: no input makes a match try twice.
_is_line = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++):[\t ]*+([\t\x20-\x7e\x80-\xff]*+)").fullmatch
is_host = re.compile(rb"(?:[A-Za-z0-9.\-_]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5})?").fullmatch
_PASSED = {PASS, SECRET, PLATFORM}
# How each begins (`shared.ids`), in whatever header somebody may send it by mistake.
_KEY = b"kl_"
# What is dropped may be a secret too, in a spelling that is not ours.
_FORGOTTEN = {KEY, REQUEST_ID, SECRET, DROP}

Line = tuple[int, bytes]


class Lines(Memo[bytes, Line]):
    """Lines by their bytes, without CR LF. Each is its kind (`fields`, or MALFORMED, or NO_HOST) and what is used of it: of one
    that may go on, the whole of it, written anew with CR LF; of the others the value.
    """

    def __init__(self, kinds: Kinds) -> None:
        super().__init__(_MEMO, by_length(_ENTRY))
        self._kinds = kinds

    def read(self, line: bytes) -> Line:
        """What a line is that is not held; `get` has those that are. From C, as by `__missing__`, it would take longer."""
        match = _is_line(line)
        if match is None:
            return MALFORMED, b""
        name, value = match.groups()
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name]
        if kind in _PASSED:
            found = PLATFORM if kind == PLATFORM else PASS, b"%b: %b\r\n" % (name, value)
        else:
            value = value.rstrip(b" \t")
            found = _meant(kind, value), value
        if self.passing > 0:
            self.passing -= 1
        elif kind not in _FORGOTTEN and len(line) <= _LINE_MAX and _KEY not in line:
            self.notice(line, found)
        return found


def _meant(kind: int, value: bytes) -> int:
    if kind == HOST and not is_host(value):
        return NO_HOST
    if kind == CONNECTION and value.lower() == b"keep-alive":
        # As it is without, and what speaks HTTP/1.0 has an answer and no more.
        return DROP
    return kind


request_lines = Lines(request_kinds)
response_lines = Lines(response_kinds)
