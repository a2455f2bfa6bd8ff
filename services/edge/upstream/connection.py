"""A connection to an upstream: one exchange at a time, its responses read as strictly as requests are. One on which
anything went wrong is not used again.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from services.edge.http.body import BodyReader, EndReader, response_reader
from services.edge.http.head import HEAD_END, RESPONSE_HEAD_MAX, check_lines, parse_response
from services.edge.http.message import BadMessage, ResponseHead

if TYPE_CHECKING:
    from services.edge.upstream.pool import Pool

_INTERIM_MAX: Final = 16
_log = structlog.get_logger()


class Failure(StrEnum):
    """How an upstream fails a request."""

    unreachable = "unreachable"
    timeout = "timeout"
    lost = "lost"
    malformed = "malformed"


class Caller(Protocol):
    """Who uses a connection: serving's exchange, which lies above. It is told of the response, in this order: head, body
    pieces, end; or of the failure.
    """

    method: str
    request_done: bool

    @property
    def waiting(self) -> bool:
        """Whether a connection is still of use."""

    @property
    def ready(self) -> bool:
        """Whether it can use a connection at full speed: its request is here, or as much of it as may wait."""

    def upstream_ready(self, connection: UpstreamConnection) -> None:
        """The connection is the caller's until the response's end."""

    def upstream_failed(self, failure: Failure, reason: str) -> None:
        """There is no connection to be had, or what came is no response, or no more one."""

    def upstream_lost(self) -> None:
        """The connection ended before the response did."""

    def upstream_full(self, *, full: bool) -> None:
        """The upstream takes no more for now (`full`), or again."""

    def response_head(self, head: ResponseHead) -> None:
        """The final response begins."""

    def response(self, head: ResponseHead, body: bytes) -> None:
        """The final response, all at once; the connection is no longer the caller's."""

    def response_body(self, data: bytes) -> None:
        """A piece of its body."""

    def response_end(self) -> None:
        """It is complete; the connection is no longer the caller's."""


class UpstreamConnection:
    """One connection to an upstream, from the attempt to make it; an `asyncio.Protocol` in all but name.

    `reused`: it has served before. `sent`: its caller's request may have reached the upstream, or some of it.
    """

    def __init__(self, pool: Pool) -> None:
        self.caller: Caller | None = None
        self.reused = False
        self.sent = False
        self.idle_until_ns = 0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._reader: BodyReader | None = None
        self._keep_alive = False
        self._interim = 0
        self._held = False
        self._full = False

    @property
    def usable(self) -> bool:
        """Whether it is open as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    def use(self, caller: Caller) -> None:
        """Gives the connection to `caller`."""
        self.caller = caller
        self.sent = False
        self._interim = 0
        caller.upstream_ready(self)

    def write(self, data: bytes) -> None:
        """Sends bytes of the request, soon."""
        self._pool.send(self, data)

    def put(self, data: bytes) -> None:
        """Sends bytes now; not on a connection that by now is known to have ended."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self.sent = True
            transport.write(data)

    def hold(self, *, hold: bool) -> None:
        """Stops reading the response, or goes on."""
        if self._transport is None or self._transport.is_closing() or hold is self._held:
            return
        self._held = hold
        if hold:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drops the connection; its caller hears no more of it, and its place in the pool is free at once."""
        self.caller = None
        if self._transport is not None:
            self._transport.abort()
        self._pool.lost(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._pool.lost(self)
        caller, self.caller = self.caller, None
        if caller is None:
            return
        if isinstance(self._reader, EndReader) and exc is None:
            caller.response_end()
        else:
            caller.upstream_lost()

    def eof_received(self) -> None:
        """asyncio: the upstream sends no more; the connection ends."""

    def pause_writing(self) -> None:
        """asyncio: too much waits to be sent."""
        self._full = True
        if self.caller is not None:
            self.caller.upstream_full(full=True)

    def resume_writing(self) -> None:
        """asyncio: enough has been sent."""
        self._full = False
        if self.caller is not None:
            self.caller.upstream_full(full=False)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of a response."""
        try:
            while data:
                caller = self.caller
                if caller is None or not self.sent:
                    self._unasked(caller)
                    return
                data = self._head(caller, data) if self._reader is None else self._body(self._reader, data)
        except BadMessage as error:
            self._failed(str(error))
        except Exception:
            _log.exception("a response could not be handled", upstream=self._pool.origin)
            self._failed("internal")

    def _unasked(self, caller: Caller | None) -> None:
        """Nobody asked for it, or not yet: whose answer it is can't be known."""
        self.abort()
        if caller is not None:
            caller.upstream_lost()

    def _head(self, caller: Caller, data: bytes) -> bytes:
        """Takes the head at the beginning of `data`, if all of it is there, and returns what follows."""
        start = len(self._buffer)
        if start:
            data, self._buffer = self._buffer + data, b""
        end = data.find(HEAD_END, start - 3 if start > 3 else 0)
        if end > RESPONSE_HEAD_MAX or (end < 0 and len(data) > RESPONSE_HEAD_MAX):
            raise BadMessage("The response head is too large")
        if end < 0:
            check_lines(data, max(0, start - 1))
            self._buffer = data
            return b""
        head = parse_response(data[: end + 4], caller.method)
        rest = data[end + 4 :]
        if head.status < 200:
            self._count_interim(head.status)
            return rest
        if len(rest) == (0 if head.bodiless else head.framing.length):
            # Most are small and come in one piece.
            self._give_back(caller, keep=head.keep_alive)
            caller.response(head, rest)
        else:
            self._begin(caller, head, rest)
        return b""

    def _count_interim(self, status: int) -> None:
        if status == 101 or self._interim == _INTERIM_MAX:
            raise BadMessage("The interim responses are unexpected")
        self._interim += 1

    def _begin(self, caller: Caller, head: ResponseHead, rest: bytes) -> None:
        reader = response_reader(head.framing, bodiless=head.bodiless)
        # Before anybody hears of the head: what came with it may show that it is no response.
        body, rest = reader.feed(rest)
        self._reader = reader
        self._keep_alive = head.keep_alive
        caller.response_head(head)
        if body and self.caller is not None:
            caller.response_body(body)
        if reader.done:
            self._end(rest)

    def _body(self, reader: BodyReader, data: bytes) -> bytes:
        body, rest = reader.feed(data)
        if body and self.caller is not None:
            self.caller.response_body(body)
        if reader.done:
            self._end(rest)
        return b""

    def _end(self, rest: bytes) -> None:
        caller = self.caller
        self._reader = None
        if caller is None:
            return
        self._give_back(caller, keep=self._keep_alive and not rest)
        caller.response_end()

    def _give_back(self, caller: Caller, *, keep: bool) -> None:
        """Frees the connection for others, if it can serve them: not while it has yet to send what nobody reads."""
        self.caller = None
        self.reused = True
        if keep and caller.request_done and not self._full:
            if self._held:
                self.hold(hold=False)
            self._pool.release(self)
        else:
            self.abort()

    def _failed(self, reason: str) -> None:
        caller = self.caller
        self.abort()
        if caller is not None:
            caller.upstream_failed(Failure.malformed, reason)
