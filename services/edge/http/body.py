"""Bodies (RFC 9112, sections 6 and 7): how many of the bytes that arrive belong to one, decoded, and what is left over.
A reader is fed whatever the socket gave, in pieces of any size.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from services.edge.http.message import BadMessage, Framing

_LINE_MAX = 256
_TRAILERS_MAX = 8 * 1024
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
# A chunk's size, and extensions, which mean nothing to us (section 7.1.1).
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;%b(?:=(?:%b|%b))?)*+" % (_TOKEN, _TOKEN, _QUOTED))
# Trailers are dropped, but one that would say how long the body is was meant to mislead somebody (section 6.5.1 of RFC 9110).
_TRAILER = re.compile(rb"(?!(?i:content-length|transfer-encoding):)%b:[\t\x20-\x7e\x80-\xff]*+" % _TOKEN)


class LengthReader:
    """A body of a known number of bytes."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` is body, and what comes after its end."""
        body = data[: self.left]
        self.left -= len(body)
        self.done = self.left == 0
        return body, data[len(body) :]


class EndReader:
    """A body that lasts until its sender closes the connection."""

    __slots__ = ()
    done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """All of it."""
        return data, b""


class ChunkedReader:
    """A body in chunks. Extensions and trailers are dropped; what is not exactly a chunk raises BadMessage."""

    __slots__ = ("_left", "_read", "_rest", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._rest = b""
        self._left = 0
        self._trailers = 0
        # The function, not the method: that would hold the reader, and only the garbage collector, which comes late, frees both.
        self._read: Callable[[ChunkedReader, bytes, int, list[bytes]], int] = ChunkedReader._size

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The body in `data`, decoded, and what comes after its end."""
        data = self._rest + data if self._rest else data
        pieces: list[bytes] = []
        position = 0
        while not self.done:
            following = self._read(self, data, position, pieces)
            if following < 0:
                break
            position = following
        rest = data[position:]
        self._rest = b"" if self.done else rest
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), rest if self.done else b""

    # Each step returns where the next begins, or -1 when it needs more bytes than there are.

    def _size(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        line, following = _line(data, position)
        if line is None:
            return -1
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadMessage("A chunk's size is malformed")
        self._left = int(match[1], 16)
        end = following + self._left
        if self._left and data[end : end + 2] == b"\r\n":
            # All of the chunk is here: many small ones must not cost a step each for size, data and end.
            pieces.append(data[following:end])
            return end + 2
        self._read = ChunkedReader._data if self._left else ChunkedReader._trailer
        return following

    def _data(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        piece = data[position : position + self._left]
        if not piece:
            return -1
        pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._read = ChunkedReader._end
        return position + len(piece)

    def _end(self, data: bytes, position: int, _pieces: list[bytes]) -> int:
        found = data[position : position + 2]
        if found != b"\r\n"[: len(found)]:
            raise BadMessage("A chunk is longer than its size")
        if len(found) < 2:
            return -1
        self._read = ChunkedReader._size
        return position + 2

    def _trailer(self, data: bytes, position: int, _pieces: list[bytes]) -> int:
        line, following = _line(data, position, _TRAILERS_MAX)
        if line is None:
            return -1
        self._trailers += following - position
        if self._trailers > _TRAILERS_MAX:
            raise BadMessage("The trailers are too large", 431)
        if line and _TRAILER.fullmatch(line) is None:
            raise BadMessage("A trailer is malformed")
        self.done = not line
        return following


BodyReader = LengthReader | ChunkedReader | EndReader


def request_reader(framing: Framing) -> BodyReader:
    """The reader of a request's body."""
    return ChunkedReader() if framing.chunked else LengthReader(framing.length or 0)


def response_reader(framing: Framing, *, bodiless: bool) -> BodyReader:
    """The reader of a response's body."""
    if bodiless:
        return LengthReader(0)
    if framing.chunked:
        return ChunkedReader()
    return EndReader() if framing.length is None else LengthReader(framing.length)


def chunk(data: bytes) -> bytes:
    """`data` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def _line(data: bytes, position: int, limit: int = _LINE_MAX) -> tuple[bytes | None, int]:
    end = data.find(b"\n", position, position + limit)
    if end < 0:
        if len(data) - position >= limit:
            raise BadMessage("A line of the body's framing is too long")
        return None, -1
    if end == position or data[end - 1] != 13:
        raise BadMessage("A line does not end with CR LF")
    return data[position : end - 1], end + 1
