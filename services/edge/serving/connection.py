"""A connection of a client: requests are read one at a time and answered in order. What comes after a request waits in the
socket until its answer is complete; what can't be read ends the connection.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

import structlog

from services.edge.clock import boot_ns, wall_ns
from services.edge.http.body import BodyReader, LengthReader, request_reader
from services.edge.http.head import HEAD_END, after_empty_lines, check_beginning, parse_request
from services.edge.http.message import BadMessage, RequestHead
from services.edge.serving import answers
from services.edge.serving.answering import NEVER
from services.edge.serving.exchange import Exchange
from services.edge.serving.link import CLOSING, EXCHANGE, HEAD, UNWANTED, Link
from services.edge.serving.passage import Passage

# So much of a body that nobody wants is read to keep a connection.
_UNWANTED_MAX: Final = 64 * 1024
_CR: Final = 13
_log = structlog.get_logger()


class ClientConnection(Link):
    """One connection of a client."""

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = _address(peer)
        self._give(self._patience.head)
        self._clients.add(self)
        if self._clients.crowded():
            self._refuse(answers.NOT_READY, "crowded")

    def connection_lost(self, _exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._buffer = b""
        self._grant = None
        self._clients.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_lost()
        self.count()

    def eof_received(self) -> None:
        """asyncio: the client sends no more. As nginx does, we take it for gone: its answer would reach nobody."""

    def pause_writing(self) -> None:
        """asyncio: the client does not keep up. It gets no other answer before it has taken these."""
        self._full = True
        self._regulate()
        self._give(self._patience.body)
        if self._exchange is not None:
            self._exchange.client_full(full=True)
        # Not from within the transport's `write`: making room may end this connection.
        asyncio.get_running_loop().call_soon(self.count)

    def resume_writing(self) -> None:
        """asyncio: the client has caught up."""
        self._full = False
        if self._state is HEAD:
            self._go_on()
        else:
            self._regulate()
        if self._state is EXCHANGE:
            self._wait_for_body()
        if self._exchange is not None:
            self._exchange.client_full(full=False)
        self.count()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the client."""
        try:
            if self._state is HEAD:
                self._head(data)
            elif self._state is not CLOSING:
                self._behind_head(data)
        except Exception:
            _log.exception("a request could not be handled")
            self._broken()

    # The exchange's side

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
            self._state = UNWANTED
            self._give(self._patience.head)
            self._regulate()
        else:
            self._next()
        if self._counted:
            self.count()

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
        self._state = EXCHANGE
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
        self._state = HEAD
        self._request = None
        self._waits = False
        if self._clients.draining:
            self._close()
        elif self._full:
            self._give(self._patience.body)
            self._regulate()
        elif self._buffer or self._paused:
            self._go_on()
        else:
            self._has_ns = self._patience.idle
            self._deadline_ns = boot_ns() + self._has_ns

    def _go_on(self) -> None:
        self._has_ns = self._patience.idle
        self._deadline_ns = boot_ns() + self._has_ns
        if self._buffer:
            # Not from here: a thousand requests in a row would be a thousand calls deep.
            asyncio.get_running_loop().call_soon(self._resume)
        elif self._paused:
            self._regulate()

    def _resume(self) -> None:
        if self._state is HEAD and self._transport is not None and self._buffer and not self._full:
            data, self._buffer = self._buffer, b""
            self._regulate()
            self.data_received(data)

    def _broken(self) -> None:
        if self._exchange is not None and self._exchange.waiting:
            self._exchange.client_failed(answers.INTERNAL)
        else:
            self.abort()


def _address(peer: object) -> str | None:
    if not isinstance(peer, tuple):
        return None
    return str(peer[0]).removeprefix("::ffff:")
