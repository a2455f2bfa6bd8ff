"""A connection of a client: requests are read one at a time and answered in order. What comes after a request waits in the
socket until its answer is complete; what can't be read ends the connection.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, cast

import structlog
from typing_extensions import override

from services.edge.clock import SECOND, boot_ns, wall_ns
from services.edge.http.body import BodyReader, LengthReader, request_reader
from services.edge.http.head import HEAD_END, after_empty_lines, check_beginning, parse_request
from services.edge.http.message import BadMessage, RequestHead
from services.edge.serving import answers
from services.edge.serving.answers import Answer
from services.edge.serving.exchange import NEVER, Exchange
from services.edge.serving.gate import Grant
from services.edge.serving.passage import Passage

if TYPE_CHECKING:
    from services.edge.serving.connections import Clients

# So much of a body that nobody wants is read to keep a connection.
_UNWANTED_MAX = 64 * 1024
_LINGER_NS = 5 * SECOND
_CR = 13
_log = structlog.get_logger()


class _State(Enum):
    HEAD = "head"
    EXCHANGE = "exchange"
    UNWANTED = "unwanted"
    CLOSING = "closing"


# A global is looked up faster than an enumeration's member.
_HEAD = _State.HEAD
_EXCHANGE = _State.EXCHANGE
_UNWANTED = _State.UNWANTED
_CLOSING = _State.CLOSING


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._edge = clients.edge
        self._patience = clients.patience
        self._transport: asyncio.Transport | None = None
        self._address: str | None = None
        self._state = _HEAD
        self._buffer = b""
        self._request: RequestHead | None = None
        self._reader: BodyReader | None = None
        self._exchange: Exchange | None = None
        self._grant: Grant | None = None
        self._deadline_ns = NEVER
        self._has_ns = 0
        self._counted = False
        self._held = False
        self._waits = False
        self._paused = False
        self._full = False

    # asyncio

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = _address(peer)
        self._give(self._patience.head)
        self._clients.add(self)
        if self._clients.crowded():
            self._refuse(answers.NOT_READY, "crowded")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._buffer = b""
        self._grant = None
        self._clients.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_lost()
        self.count()

    @override
    def eof_received(self) -> None:
        """asyncio: the client sends no more. As nginx does, we take it for gone: its answer would reach nobody."""

    @override
    def pause_writing(self) -> None:
        """asyncio: the client does not keep up. It gets no other answer before it has taken these."""
        self._full = True
        self._regulate()
        self._give(self._patience.body)
        if self._exchange is not None:
            self._exchange.client_full(full=True)
        # Not from within the transport's `write`: making room may end this connection.
        asyncio.get_running_loop().call_soon(self.count)

    @override
    def resume_writing(self) -> None:
        """asyncio: the client has caught up."""
        self._full = False
        if self._state is _HEAD:
            self._go_on()
        else:
            self._regulate()
        if self._state is _EXCHANGE:
            self._wait_for_body()
        if self._exchange is not None:
            self._exchange.client_full(full=False)
        self.count()

    @override
    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        try:
            if self._state is _HEAD:
                self._head(data)
            elif self._state is not _CLOSING:
                self._behind_head(data)
        except Exception:
            _log.exception("a request could not be handled")
            self._broken()

    # The exchange's side

    def write(self, data: bytes) -> None:
        """Sends bytes of the answer."""
        if self._transport is not None:
            self._transport.write(data)

    def hold(self, *, hold: bool) -> None:
        """Stops reading the body, or goes on."""
        self._held = hold
        self._wait_for_body()
        self._regulate()

    def may_keep(self) -> bool:
        """Whether the connection can go on after this exchange: not with much of a body left that nobody wants."""
        if self._clients.draining or self._request is None or not self._request.keep_alive:
            return False
        reader = self._reader
        return reader is None or (isinstance(reader, LengthReader) and reader.left <= _UNWANTED_MAX)

    def finished(self, *, keep: bool) -> None:
        """The answer is complete; the connection goes on (`keep`) or ends once it is sent."""
        self._exchange = None
        self._held = False
        if not keep:
            self._close()
        elif self._reader is not None:
            self._state = _UNWANTED
            self._give(self._patience.head)
            self._regulate()
        else:
            self._next()
        if self._counted:
            self.count()

    def abort(self) -> None:
        """Drops the connection: the answer can't be completed."""
        self._state = _CLOSING
        if self._transport is not None:
            self._transport.abort()

    # Memory

    def count(self) -> None:
        """Tells how much waits here: of requests, and of answers that the client does not take."""
        transport, exchange = self._transport, self._exchange
        size = len(self._buffer) + (exchange.held if exchange is not None else 0)
        if self._full and transport is not None:
            size += transport.get_write_buffer_size()
        if size or self._counted:
            self._counted = size > 0
            self._clients.backlog.hold(self, size)

    def give_way(self) -> None:
        """Too much waits in memory, and this for longest."""
        self._counted = False
        if self._full:
            self.abort()
        elif self._exchange is not None and self._exchange.waiting:
            self._buffer = b""
            self._exchange.client_failed(answers.UNAVAILABLE)
        elif self._state is _HEAD:
            self._refuse(answers.NOT_READY, "crowded")
        else:
            self.abort()

    # Time

    def end_overdue(self, now_ns: int, *, pressed: bool, recheck: bool) -> None:
        """Ends what has waited too long, sooner when others wait for what it holds (`pressed`: for its connection)."""
        exchange = self._exchange
        deadline_ns = self._deadline_ns
        if pressed or (exchange is not None and exchange.pressed):
            deadline_ns -= max(0, self._has_ns - self._patience.pressed)
        if now_ns >= deadline_ns:
            self._expire()
        elif exchange is not None and now_ns >= exchange.deadline_ns:
            exchange.expire()
        elif exchange is not None and recheck:
            exchange.recheck()

    @property
    def reads_head(self) -> bool:
        """Whether the head of a request, or nothing yet, is read."""
        return self._state is _HEAD

    def drain(self) -> None:
        """Ends the connection unless a request is under way."""
        if self._state in {_HEAD, _UNWANTED} and not self._buffer:
            self._close()

    def turn_away(self) -> None:
        """Ends the connection before the request that it began: another process takes it."""
        self._refuse(answers.NOT_READY, "draining")

    def _expire(self) -> None:
        """The answer to a client that is too slow: 408 while it can have one, or the end of the connection."""
        exchange = self._exchange
        if exchange is not None and exchange.waiting and not self._full:
            exchange.client_failed(answers.REQUEST_TIMEOUT)
            self._give(self._patience.body)
        elif self._state is _HEAD and self._buffer and not self._full:
            self._refuse(answers.REQUEST_TIMEOUT, "timeout")
        elif self._state is _HEAD and not self._full:
            self._close()
        else:
            self.abort()

    def _give(self, time_ns: int) -> None:
        """The client has so long from now."""
        self._has_ns = time_ns
        self._deadline_ns = boot_ns() + time_ns

    def _wait_for_body(self) -> None:
        if self._full:
            return
        if self._reader is None or self._held:
            # While we don't read, it is not the client that is slow.
            self._deadline_ns = NEVER
        else:
            self._give(self._patience.body)

    # Reading

    def _behind_head(self, data: bytes) -> None:
        if self._reader is not None:
            self._body(self._reader, data)
        else:
            self._wait(data)

    def _head(self, data: bytes) -> None:
        checked = len(self._buffer)
        if checked:
            data = self._buffer + data
        if data[0] == _CR:
            data, checked = after_empty_lines(data), 0
            if not data:
                self._buffer = data
                return
        try:
            end = data.find(HEAD_END, checked - 3 if checked > 3 else 0)
            if end < 0:
                check_beginning(data, checked)
                if not checked and data != b"\r":
                    # An empty line, or half of one, is no request's first byte.
                    self._give(self._patience.head)
                self._buffer = data
                self.count()
                return
            request = parse_request(data[: end + 4])
            passage = self._edge.gate.judge(request, self._address, boot_ns(), wall_ns(), self._grant)
        except BadMessage as error:
            self._refuse(answers.malformed(error), error.code)
            return
        self._buffer = b""
        self._begin(request, passage, data[end + 4 :])
        if self._counted:
            self.count()

    def _begin(self, request: RequestHead, passage: Passage, rest: bytes) -> None:
        self._state = _EXCHANGE
        self._grant = passage.grant
        self._request = request
        exchange = self._exchange = Exchange(self._edge, self, request, passage)
        if request.empty:
            self._deadline_ns = NEVER
            if rest:
                self._wait(rest)
        else:
            self._give(self._patience.body)
            reader = self._reader = request_reader(request.framing)
            if rest:
                self._body(reader, rest)
        exchange.start()

    def _body(self, reader: BodyReader, data: bytes) -> None:
        exchange = self._exchange
        try:
            body, rest = reader.feed(data)
        except BadMessage as error:
            self._malformed_body(error)
            return
        if reader.done:
            self._reader = None
        if not self._full:
            # Else it is the answer that the client is slow with.
            if reader.done:
                self._deadline_ns = NEVER
            elif not self._held:
                self._renew(len(body))
        if rest:
            self._wait(rest)
        if exchange is None:
            if reader.done:
                self._next()
            return
        if body:
            exchange.request_body(body)
        if reader.done:
            exchange.request_end()
        if exchange.held or self._counted:
            self.count()

    def _renew(self, count: int) -> None:
        """So many bytes of a body came: each gives the client some time back, but never more than it had at first."""
        deadline_ns = self._deadline_ns + count * self._patience.byte
        self._deadline_ns = min(deadline_ns, boot_ns() + self._has_ns)

    def _malformed_body(self, error: BadMessage) -> None:
        if self._exchange is not None:
            self._exchange.client_failed(answers.malformed(error))
        else:
            self.abort()

    def _wait(self, data: bytes) -> None:
        """Keeps the beginning of the next request until this one is answered."""
        self._buffer += data
        self._waits = True
        self._regulate()
        self.count()

    def _next(self) -> None:
        self._state = _HEAD
        self._request = None
        self._waits = False
        if self._clients.draining:
            self._close()
        elif self._full:
            self._give(self._patience.body)
            self._regulate()
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._has_ns = self._patience.idle
        self._deadline_ns = boot_ns() + self._has_ns
        if self._buffer:
            # Not from here: a thousand requests in a row would be a thousand calls deep.
            asyncio.get_running_loop().call_soon(self._resume)
        elif self._paused:
            self._regulate()

    def _resume(self) -> None:
        if self._state is _HEAD and self._transport is not None and self._buffer and not self._full:
            data, self._buffer = self._buffer, b""
            self._regulate()
            self.data_received(data)

    def _regulate(self) -> None:
        busy = self._state is _EXCHANGE and (self._held or self._waits)
        pause = busy or (self._full and self._state in {_HEAD, _UNWANTED})
        if self._transport is None or pause is self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # Ending

    def _refuse(self, answer: Answer, reason: str) -> None:
        """Answers what is no request, or not in time, and ends the connection."""
        self._edge.metrics.unmetered(reason)
        request_id = self._edge.gate.new_id().encode()
        self.write(answer.encode(request_id, b"Connection: close\r\n", to_head=False))
        self._linger()

    def _close(self) -> None:
        if self._reader is not None or self._buffer:
            self._linger()
        elif self._transport is not None:
            self._state = _CLOSING
            self._give(self._patience.body)
            self._transport.close()

    def _linger(self) -> None:
        """Ends our side only: closing with bytes unread would make the kernel take our answer back (RFC 9112, 9.6)."""
        self._state = _CLOSING
        self._buffer = b""
        self._regulate()
        self._give(_LINGER_NS)
        if self._transport is not None:
            self._transport.write_eof()
        if self._counted:
            self.count()

    def _broken(self) -> None:
        if self._exchange is not None and self._exchange.waiting:
            self._exchange.client_failed(answers.INTERNAL)
        else:
            self.abort()


def _address(peer: object) -> str | None:
    if not isinstance(peer, tuple):
        return None
    return str(peer[0]).removeprefix("::ffff:")
