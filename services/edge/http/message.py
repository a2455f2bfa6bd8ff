"""What a head says, once it is read, and that it can't be read."""

from __future__ import annotations

import msgspec

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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


NO_LENGTH = Framing()
CHUNKED = Framing(chunked=True)


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request's head. `fields` are the header lines that may go on to an upstream, each ended; the others are
    taken out of the rest.

    `empty`: no byte of a body follows.
    """

    method: str
    target: bytes
    minor: int
    fields: bytes
    keys: list[bytes]
    request_ids: list[bytes]
    host: bytes
    framing: Framing = NO_LENGTH
    empty: bool = True
    keep_alive: bool = True
    expects_continue: bool = False
    upgrade: bytes = b""


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A response's head. `fields` are the header lines that may go on to a client, each ended, `platform` the
    `Keyledger-` ones beside them.

    `bodiless`: no body follows, whatever `framing` declares (RFC 9112, section 6.3). `date` is empty when it has none.
    """

    status: int
    reason: bytes
    minor: int
    fields: bytes
    platform: bytes
    date: bytes
    framing: Framing
    bodiless: bool
    keep_alive: bool
